#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* A worker process as the broker holds it: spawned with one end of a control socketpair, watched by
 * pidfd, told and heard in whole messages (layout/channel.h). What it says is hostile: sizes are checked
 * here, the order of messages by whoever listens (model.c). Thread: broker. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/hash.h"
#include "layout/channel.h"

struct error;
struct server;

struct process {
	struct server *server;
	uint32_t
		generation; /* names this process in tags, and no other one of this daemon; 0: none yet */
	pid_t pid;
	int pidfd, control; /* negative: no process, nobody to talk to */
	bool pid_polled, control_polled;
	uint64_t born_usec;
};

/** process_spawn() - start a process and watch it. Return: 0 or -errno with a sentence. */
int process_spawn(struct process *p, struct server *s, struct error *err);
/** process_send() - @msg with @n_fds descriptors. Blocks for 2 s at the most. */
int process_send(struct process *p, const struct control_msg *msg, const int *fds, size_t n_fds);
/**
 * process_send_files() - a model's files, read-only
 * @path:       a directory in Hugging Face's layout
 * @ret_source: MAC of what the kernel says of the files: the same as long as nobody wrote to them
 * Return: 0; -errno with a sentence that names the file.
 */
int process_send_files(struct process *p, const char *path, uint8_t ret_source[HASH_MAC_BYTES],
		       struct error *err);
/**
 * process_recv() - one message, if one is there; its text is printable and ends
 * @ret_fd: the descriptor that came along, the caller's from then on; else -EBADF
 * Return: 1 with a message; 0: none (or the socket ended: the pidfd will say so); -EPROTO.
 */
int process_recv(struct process *p, struct control_msg *msg, int *ret_fd);
void process_kill(struct process *p);
/** process_reap() - Return: true when it is dead, with its status; nothing is left of it then. */
bool process_reap(struct process *p, int *ret_status);
/** process_hang_up() - say and hear no more. */
void process_hang_up(struct process *p);
