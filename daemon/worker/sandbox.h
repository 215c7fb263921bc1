#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What a worker may still ask of the kernel. It reads files that strangers wrote and maps every
 * tenant's pages: whoever takes it over shall find no path, no socket, no other process.
 *
 *   sandbox_close_paths()              Landlock: no path, no TCP, no abstract socket, no foreign signal
 *   sandbox_set_calls(SANDBOX_LOADING) seccomp: reading descriptors, memory, threads
 *   sandbox_set_calls(SANDBOX_SERVING) seccomp: what a step needs; no more threads, no more messages
 *
 * Each only ever tightens. A call that a worker never makes (a socket, an exec, a trace) ends it with
 * SIGSYS, which the broker tells; any other one that is not allowed fails with EPERM, since a library
 * may try and go on without. Thread: the only one, except SANDBOX_SERVING, which is for all threads. */

struct error;

enum sandbox_stage { SANDBOX_LOADING, SANDBOX_SERVING, _SANDBOX_STAGE_MAX };

/**
 * sandbox_close_paths() - from here on no path opens; descriptors that are open stay
 *
 * Return: 0. -EOPNOTSUPP, -ENOSYS, -EPERM: there is no Landlock here, with a sentence; go on without.
 */
int sandbox_close_paths(struct error *err);

/** sandbox_set_calls() - Return: 0. -EOPNOTSUPP, -ENOSYS, -EPERM: as above, for seccomp. */
int sandbox_set_calls(enum sandbox_stage stage, struct error *err);
