#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The worker's end of the control socketpair (layout/channel.h): whole messages with descriptors. */
#include <stdint.h>

#include "layout/channel.h"

struct error;

/* One received message. Owns its descriptors until they are taken. */
struct control_in {
	struct control_msg msg; /* text is 0-terminated */
	int fds[CONTROL_FDS_MAX];
	uint32_t n_fds;
};

/** control_in_done() - close what nobody took. */
void control_in_done(struct control_in *in);

/**
 * control_recv() - wait for one message
 *
 * Return: 1; 0 where the other side has gone; -EBADMSG for a message of another size, an unknown
 *         type, text without an end, or descriptors that were cut off; -errno of recvmsg.
 * Thread: any.
 */
int control_recv(int fd, struct control_in *ret, struct error *err);

/** control_send() - @msg with @attached (or -1). Return: 0; -EPIPE where the other side has gone. */
int control_send(int fd, const struct control_msg *msg, int attached, struct error *err);
int control_send_text(int fd, enum control_type type, const char *text, uint64_t done,
		      uint64_t total, struct error *err);
