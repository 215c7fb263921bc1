#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Before a model takes requests it computes a few greedy tokens. They must be those that the same
 * model (by digest) gave when it was first served here, which the state directory remembers: what
 * computes other tokens than yesterday is not served. Thread: broker. */
#include <stdbool.h>
#include <stdint.h>

struct error;
struct model;
struct seq;

#define SELFTEST_TOKENS 8u

struct selftest {
	struct model *model;
	struct seq *seq; /* NULL: none runs */
	uint32_t ids[SELFTEST_TOKENS];
	uint32_t n;
};

/**
 * selftest_start() - model_on_selftest() is called when it has ended
 * @always: run it also where the state directory knows its result
 * Return: 1: it runs. 0: there is nothing to test. -errno with a sentence.
 */
int selftest_start(struct selftest *t, struct model *m, bool always, struct error *err);
bool selftest_is_running(const struct selftest *t);
void selftest_stop(struct selftest *t);
