#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Chat messages to token ids, by compiled-in renderers (never by a template from the model's files).
 *
 * The structure of a chat is made of control ids that come from the model image alone; what the
 * messages say is encoded with control tokens off, so no text can end a turn or open another.
 * Where a published template puts literal text next to a message ("User: " and the question), both
 * are encoded as one string, so that merges cross the seam as they do in Hugging Face's output. */
#include <stddef.h>
#include <stdint.h>

struct encode_scratch;
struct error;
struct ids;
struct vocab;

enum message_role { MESSAGE_SYSTEM, MESSAGE_USER, MESSAGE_ASSISTANT, _MESSAGE_ROLE_MAX };

struct message {
	enum message_role role;
	const char *text; /* any bytes; not 0-terminated */
	size_t n;
};

/* flags */
#define TEMPLATE_GENERATION_PROMPT 1u /* end where the assistant's answer begins */

/** message_role_name() - "system", "user", "assistant"; NULL for other values. */
const char *message_role_name(enum message_role role);
/** message_role_parse() - the reverse. Return: the role or -EINVAL. */
int message_role_parse(const char *name, struct error *err);

/**
 * template_render() - append the ids of a conversation
 * @s:   scratch, or NULL
 * @ret: ids are appended, the begin token first and once; unchanged on failure
 *
 * Source: the published templates, V2 (DeepSeek-V2-Lite-Chat) and V3, chosen by the image's renderer.
 *
 * Return: 0. -EOPNOTSUPP: the model has no chat renderer. -EINVAL: no messages, a role that does not
 *         exist, or an image without the control ids that the renderer needs. Else as encode_text().
 * Thread: any; one per scratch.
 */
int template_render(const struct vocab *v, struct encode_scratch *s, const struct message *messages,
		    size_t n_messages, unsigned flags, struct ids *ret, struct error *err);
