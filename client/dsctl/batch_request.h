#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* One line of `dsctl batch`: a JSON object that says what generate's options say. */
#include <json-c/json.h>
#include <dsclient.h>

#define BATCH_WHY_BYTES 256

struct batch_request {
	struct dsc_request request; /* points into what follows */
	struct json_object *json;   /* the line; NULL: it is no JSON object */
	struct json_object *id;     /* within it; NULL: it has none */
	struct dsc_message *messages;
	uint32_t *ids;
	struct dsc_stop *stop;
	struct dsc_bias *bias;
};

/**
 * batch_request_init() - read a line
 * @ret:      also on error, with as much of id as could be read; to be freed by batch_request_done()
 * @defaults: what holds where the line does not say
 * @line:     n bytes, without a newline
 * @why:      on error: a sentence
 *
 * Return: 0, -EINVAL, -ENOMEM.
 */
int batch_request_init(struct batch_request *ret, const struct dsc_request *defaults,
		       const char *line, size_t n, char why[static BATCH_WHY_BYTES]);
void batch_request_done(struct batch_request *b);
