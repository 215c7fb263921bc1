#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Fault points: named steps of what must survive a crash. For tests: DSD_FAULT=NAME[:N] in the
 * environment kills the process, as SIGKILL does, when it passes NAME for the Nth time (1 unless
 * told). Off, a point costs one load. */
struct error;

enum fault_point {
	FAULT_NONE,
	FAULT_ADOPT_MAP,    /* a pool of another life is mapped, nothing of it was believed yet */
	FAULT_ADOPT_HEADER, /* its header is good and counts one attempt more */
	FAULT_ADOPT_RECORD, /* one more record was taken or scrubbed */
	FAULT_ADOPT_DONE,
	FAULT_SEAL_BEGIN,   /* the record's generation is odd */
	FAULT_SEAL_FIELDS,  /* its fields are written */
	FAULT_SEAL_END,     /* its generation is even */
	FAULT_TAG_COMPUTED, /* on the second thread */
	FAULT_TAG_WRITE,    /* the tag is written, the generation odd */
	FAULT_TAG_WRITTEN,
	FAULT_WORKER_SPAWN,
	FAULT_WORKER_FILES,
	FAULT_WORKER_IMAGE,
	FAULT_WORKER_CHANNEL,
	FAULT_WORKER_READY,
	FAULT_RELOAD_BEGIN,
	FAULT_RELOAD_SELFTEST,
	FAULT_RELOAD_SWITCH,
	FAULT_RELOAD_OLD_DONE,
	FAULT_STORE_PUSH,
	FAULT_STORE_PUSHED,
	_FAULT_POINT_MAX
};

/** fault_init() - once at start, before any thread; @spec NULL or empty: none.
 * Return: 0; -EINVAL names the points there are. */
int fault_init(const char *spec, struct error *err);
/** fault_name() - as DSD_FAULT has it. */
const char *fault_name(enum fault_point f);

extern enum fault_point fault_armed; /* fault_init() alone writes it */
void fault_pass(void);

/** fault_at() - the process passes @f. Thread: any. */
static inline void fault_at(enum fault_point f)
{
	if (f == fault_armed)
		fault_pass();
}
