/* SPDX-License-Identifier: Apache-2.0 */
/* batch_request_init() on any bytes as a line. What it takes has one prompt and finite numbers; what it refuses has a
 * sentence. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "batch_request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok)
{
	if (!ok)
		abort();
}

static void touch(const void *data, size_t n)
{
	uint8_t sum = 0;

	for (size_t i = 0; i < n; i++)
		sum = (uint8_t)(sum + ((const uint8_t *)data)[i]);
	__asm__ volatile("" : : "r"(sum));
}

static void check(const struct dsc_request *r)
{
	must(r->size == sizeof(*r));
	must(isfinite(r->temperature) && isfinite(r->top_p) && isfinite(r->min_p));
	must(isfinite(r->repetition_penalty) && isfinite(r->presence_penalty) &&
	     isfinite(r->frequency_penalty));
	must((r->text != NULL) + (r->messages != NULL) + (r->ids != NULL) == 1);
	touch(r->text, r->text_bytes);
	touch(r->suffix, r->suffix_bytes);
	touch(r->ids, r->n_ids * sizeof(*r->ids));
	for (size_t i = 0; i < r->n_messages; i++) {
		must(r->messages[i].role >= DSC_ROLE_SYSTEM &&
		     r->messages[i].role <= DSC_ROLE_ASSISTANT);
		touch(r->messages[i].text, r->messages[i].text_bytes);
	}
	for (size_t i = 0; i < r->n_stop; i++)
		touch(r->stop[i].text, r->stop[i].text_bytes);
	for (size_t i = 0; i < r->n_logit_bias; i++)
		must(isfinite(r->logit_bias[i].bias));
	if (r->model)
		touch(r->model, strlen(r->model));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct dsc_request defaults = DSC_REQUEST_INIT;
	char why[BATCH_WHY_BYTES] = "";
	struct batch_request b;
	int r = batch_request_init(&b, &defaults, (const char *)data, size, why);

	if (r == 0)
		check(&b.request);
	else
		must(r < 0 && *why && memchr(why, 0, sizeof(why)));
	if (b.id)
		must(json_object_is_type(b.id, json_type_string) ||
		     json_object_is_type(b.id, json_type_int));
	batch_request_done(&b);
	return 0;
}
