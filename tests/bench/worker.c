/* SPDX-License-Identifier: Apache-2.0 */
/* dsd-worker whose fake model says when it was ready with a step: linked with --wrap=fake_new, it puts the
 * clock into the log-probability of every token. */
#include <stdlib.h>
#include <time.h>

#include "stamp.h"
#include "worker/engine.h"
#include "worker/fake.h"

struct stamped {
	struct engine inner;
};

int __real_fake_new(struct engine *ret, struct image_builder *image, uint32_t n_context,
		    struct error *err);
int __wrap_fake_new(struct engine *ret, struct image_builder *image, uint32_t n_context,
		    struct error *err);

static void stamped_free(void *ctx)
{
	struct stamped *s = ctx;

	engine_done(&s->inner);
	free(s);
}

static int stamped_attach(void *ctx, const struct engine_room *room, struct error *err)
{
	struct stamped *s = ctx;

	return s->inner.attach(s->inner.ctx, room, err);
}

static int stamped_step(void *ctx, const struct engine_step *step, struct channel_result_row *ret,
			struct error *err)
{
	struct stamped *s = ctx;
	int r = s->inner.step(s->inner.ctx, step, ret, err);
	float now = stamp_make(stamp_now_nsec());

	for (uint32_t i = 0; i < step->n_wants; i++)
		ret[i].logprob = now;
	return r;
}

int __wrap_fake_new(struct engine *ret, struct image_builder *image, uint32_t n_context,
		    struct error *err)
{
	struct stamped *s = calloc(1, sizeof(*s));
	int r = s ? __real_fake_new(&s->inner, image, n_context, err) : -1;

	if (r < 0) {
		free(s);
		return r;
	}
	*ret = (struct engine){.limits = s->inner.limits,
			       .ctx = s,
			       .free = stamped_free,
			       .attach = stamped_attach,
			       .step = stamped_step};
	return 0;
}
