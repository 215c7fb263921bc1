#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What was said in a chat: the system message if there is one, then turns of a question and its answer. */
#include <dsclient.h>

struct conversation {
	struct dsc_message *messages; /* as a request takes them; each text malloc'ed */
	size_t n, size;
};
#define CONVERSATION_NULL ((struct conversation){})

void conversation_done(struct conversation *c);
/** conversation_add() - append a copy of a text. Return: 0, -ENOMEM. */
int conversation_add(struct conversation *c, enum dsc_role role, const void *text, size_t bytes);
/** conversation_set_system() - replace the system message; 0 bytes: have none. Return: 0, -ENOMEM. */
int conversation_set_system(struct conversation *c, const void *text, size_t bytes);
/** conversation_truncate() - keep the first n messages; nothing where there are not more. */
void conversation_truncate(struct conversation *c, size_t n);
/** conversation_clear() - forget all but the system message. */
void conversation_clear(struct conversation *c);
/** conversation_last() - index of the last question; c->n if there is none. */
size_t conversation_last(const struct conversation *c);
