/* SPDX-License-Identifier: Apache-2.0 */
#include "conversation.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static void drop_message(struct dsc_message *m)
{
	free((void *)m->text);
	*m = (struct dsc_message){};
}

static bool has_system(const struct conversation *c)
{
	return c->n > 0 && c->messages[0].role == DSC_ROLE_SYSTEM;
}

void conversation_done(struct conversation *c)
{
	conversation_truncate(c, 0);
	free(c->messages);
	*c = CONVERSATION_NULL;
}

int conversation_add(struct conversation *c, enum dsc_role role, const void *text, size_t bytes)
{
	void *copy;

	if (c->n == c->size) {
		size_t size = c->size ? 2 * c->size : 16;
		struct dsc_message *messages = reallocarray(c->messages, size, sizeof(*messages));

		if (!messages)
			return -ENOMEM;
		c->messages = messages;
		c->size = size;
	}
	copy = malloc(bytes + 1);
	if (!copy)
		return -ENOMEM;
	if (bytes > 0)
		memcpy(copy, text, bytes);
	c->messages[c->n++] = (struct dsc_message){role, copy, bytes};
	return 0;
}

int conversation_set_system(struct conversation *c, const void *text, size_t bytes)
{
	struct dsc_message added;
	bool had = has_system(c);
	int r;

	if (bytes == 0) {
		if (had) {
			drop_message(&c->messages[0]);
			memmove(c->messages, c->messages + 1, --c->n * sizeof(*c->messages));
		}
		return 0;
	}
	r = conversation_add(c, DSC_ROLE_SYSTEM, text, bytes);
	if (r < 0)
		return r;
	added = c->messages[--c->n];
	if (had)
		drop_message(&c->messages[0]);
	else
		memmove(c->messages + 1, c->messages, c->n++ * sizeof(*c->messages));
	c->messages[0] = added;
	return 0;
}

void conversation_truncate(struct conversation *c, size_t n)
{
	while (c->n > n)
		drop_message(&c->messages[--c->n]);
}

void conversation_clear(struct conversation *c)
{
	conversation_truncate(c, has_system(c) ? 1 : 0);
}

size_t conversation_last(const struct conversation *c)
{
	for (size_t i = c->n; i > 0; i--)
		if (c->messages[i - 1].role == DSC_ROLE_USER)
			return i - 1;
	return c->n;
}
