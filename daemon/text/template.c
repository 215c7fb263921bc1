/* SPDX-License-Identifier: Apache-2.0 */
/* A renderer writes literal text, message text and control ids to a composer, in the order of the
 * published template. Text between two control ids is collected and encoded as one string. */
#include "text/template.h"

#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "text/decode.h"
#include "text/encode.h"
#include "text/vocab.h"

struct composer {
	const struct vocab *v;
	struct encode_scratch *s;
	struct text_buf pending; /* text since the last control id */
	struct ids *ids;
	int r; /* the first failure; nothing is done after it */
	struct error *err;
};

struct renderer {
	const char *name;
	bool user_ids; /* needs token_user and token_assistant */
	void (*render)(struct composer *c, const struct message *messages, size_t n,
		       unsigned flags);
};

static void put_text(struct composer *c, const char *text, size_t n)
{
	if (c->r == 0)
		c->r = text_buf_append(&c->pending, text, n);
}

static void put_literal(struct composer *c, const char *text)
{
	put_text(c, text, strlen(text));
}

static void put_message(struct composer *c, const struct message *m)
{
	put_text(c, m->text, m->n);
}

static void encode_pending(struct composer *c)
{
	if (c->r == 0)
		c->r = encode_text(c->v, c->s, c->pending.data, c->pending.n, 0, c->ids, c->err);
	c->pending.n = 0;
}

static void put_control(struct composer *c, uint32_t id)
{
	encode_pending(c);
	if (c->r == 0)
		c->r = ids_push(c->ids, id);
}

/* B, then for each message "{system}\n\n", "User: {user}\n\n", "Assistant: {assistant}" E. */
static void render_v2(struct composer *c, const struct message *messages, size_t n, unsigned flags)
{
	const struct image_header *h = vocab_image(c->v)->h;

	put_control(c, h->bos);
	for (size_t i = 0; i < n; i++) {
		const struct message *m = &messages[i];

		if (m->role == MESSAGE_ASSISTANT) {
			put_literal(c, "Assistant: ");
			put_message(c, m);
			put_control(c, h->eos[0]);
		} else {
			put_literal(c, m->role == MESSAGE_USER ? "User: " : "");
			put_message(c, m);
			put_literal(c, "\n\n");
		}
	}
	if (flags & TEMPLATE_GENERATION_PROMPT)
		put_literal(c, "Assistant:");
}

/* B, all system messages joined by "\n\n", then U {user} and A {assistant} E in their order. */
static void render_v3(struct composer *c, const struct message *messages, size_t n, unsigned flags)
{
	const struct image_header *h = vocab_image(c->v)->h;
	bool first = true;

	put_control(c, h->bos);
	for (size_t i = 0; i < n; i++) {
		if (messages[i].role != MESSAGE_SYSTEM)
			continue;
		put_literal(c, first ? "" : "\n\n");
		put_message(c, &messages[i]);
		first = false;
	}
	for (size_t i = 0; i < n; i++) {
		const struct message *m = &messages[i];

		if (m->role == MESSAGE_USER) {
			put_control(c, h->token_user);
			put_message(c, m);
		} else if (m->role == MESSAGE_ASSISTANT) {
			put_control(c, h->token_assistant);
			put_message(c, m);
			put_control(c, h->eos[0]);
		}
	}
	if (flags & TEMPLATE_GENERATION_PROMPT)
		put_control(c, h->token_assistant);
}

static const struct renderer renderers[_IMAGE_RENDER_MAX] = {
	[IMAGE_RENDER_V2] = {"V2", .render = render_v2},
	[IMAGE_RENDER_V3] = {"V3", .user_ids = true, .render = render_v3},
};

static const char *const role_names[_MESSAGE_ROLE_MAX] = {
	[MESSAGE_SYSTEM] = "system",
	[MESSAGE_USER] = "user",
	[MESSAGE_ASSISTANT] = "assistant",
};

const char *message_role_name(enum message_role role)
{
	return (unsigned)role < _MESSAGE_ROLE_MAX ? role_names[role] : NULL;
}

int message_role_parse(const char *name, struct error *err)
{
	for (int i = 0; i < _MESSAGE_ROLE_MAX; i++)
		if (strcmp(name, role_names[i]) == 0)
			return i;
	return error_set(err, -EINVAL, "role \"%.40s\": want system, user or assistant", name);
}

static int check_messages(const struct message *messages, size_t n, struct error *err)
{
	if (n == 0)
		return error_set(err, -EINVAL, "a chat without messages: want at least one");
	for (size_t i = 0; i < n; i++)
		if (!message_role_name(messages[i].role))
			return error_set(err, -EINVAL, "message %zu has role %d: want 0 to %d", i,
					 (int)messages[i].role, _MESSAGE_ROLE_MAX - 1);
	return 0;
}

static int check_image(const struct renderer *t, const struct image_header *h, struct error *err)
{
	if (!t->render)
		return error_set(err, -EOPNOTSUPP, "the model has no chat template that dsd knows");
	if (h->bos == IMAGE_NONE || h->n_eos == 0 ||
	    (t->user_ids && (h->token_user == IMAGE_NONE || h->token_assistant == IMAGE_NONE)))
		return error_set(err, -EINVAL,
				 "the model lacks control tokens of its %s chat template", t->name);
	return 0;
}

int template_render(const struct vocab *v, struct encode_scratch *s, const struct message *messages,
		    size_t n_messages, unsigned flags, struct ids *ret, struct error *err)
{
	const struct image_header *h = vocab_image(v)->h;
	const struct renderer *t = &renderers[h->renderer];
	struct composer c = {.v = v, .s = s, .ids = ret, .err = err};
	size_t n_before = ret->n;
	int r;

	r = check_image(t, h, err);
	if (r == 0)
		r = check_messages(messages, n_messages, err);
	if (r < 0)
		return r;
	t->render(&c, messages, n_messages, flags);
	encode_pending(&c);
	text_buf_done(&c.pending);
	if (c.r < 0)
		ret->n = n_before;
	return c.r;
}
