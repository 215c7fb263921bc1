/* SPDX-License-Identifier: Apache-2.0 */
/* config.json (first byte even) and generation_config.json (odd): what passes is inside its ranges, and
 * makes a model or a sentence. */
#include <stdint.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "worker/load/config.h"
#include "worker/load/tensors.h"

static void must(bool ok)
{
	if (!ok)
		abort();
}

static void check_config(const uint8_t *data, size_t n)
{
	struct load_config c;
	struct error err = {};
	struct model m;
	uint64_t n_params, n_active;

	if (load_config_parse(&c, data, n, &err) < 0) {
		must(err.text[0] != 0);
		return;
	}
	must(c.m.n_vocab > 0 && c.m.n_vocab <= IMAGE_VOCAB_MAX && c.m.n_layers <= IMAGE_LAYERS_MAX);
	must(c.bos == IMAGE_NONE || c.bos < c.m.n_vocab);
	for (uint32_t i = 0; i < c.n_eos; i++)
		must(c.eos[i] < c.m.n_vocab);
	if (model_init(&m, &c.m, NULL, &err) < 0)
		must(err.text[0] != 0);
	else
		free(m.layers);
	/* One visit for each expert: not worth the time for a thousand layers of them. */
	if (c.m.n_layers * (c.m.n_experts + 1) > 4096)
		return;
	tensors_count(&c, &n_params, &n_active);
	must(n_active > 0 && n_active <= n_params && n_params < UINT64_MAX / 8);
}

static void check_generation(const uint8_t *data, size_t n)
{
	struct load_generation g;
	struct error err = {};

	if (load_generation_parse(&g, data, n, 1000, &err) < 0) {
		must(err.text[0] != 0);
		return;
	}
	must(!(g.defaults & IMAGE_DEFAULT_TOP_P) || (g.top_p > 0 && g.top_p <= 1));
	must(!(g.defaults & IMAGE_DEFAULT_TEMPERATURE) ||
	     (g.temperature >= 0 && g.temperature <= 100));
	for (uint32_t i = 0; i < g.n_eos; i++)
		must(g.eos[i] < 1000);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	if (n == 0)
		return 0;
	if (data[0] & 1)
		check_generation(data + 1, n - 1);
	else
		check_config(data + 1, n - 1);
	return 0;
}
