#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions: pages that a user keeps for a stated time. Only the scheduler includes this; what others call is
 * in sched.h.
 *
 * A session holds what the last sequence that ran in it had sealed, from the first page on. All that
 * sessions hold together is at most half of the pool, and it gives way: when the pool is short, the pages
 * of the session that was used the longest ago go before any sequence loses its own. The session
 * stays and finds less the next time, so a lease can make nobody wait for its end. */
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct sched;
struct seq;
struct session;

/** session_use() - a sequence begins in it: its lease begins anew. NULL: it is not there. */
struct session *session_use(struct sched *s, uid_t uid, uint64_t id);
/** session_keep() - @q is about to go: what it has sealed is kept, in place of what was. */
void session_keep(struct seq *q);
/** session_give_up() - drop the pages of the session that was used the longest ago. false: none has any. */
bool session_give_up(struct sched *s);
/** session_n_pages() - references that sessions hold. */
uint32_t session_n_pages(const struct sched *s);
/** session_n_pages_of() - those that one user's hold; for checks. */
uint32_t session_n_pages_of(const struct sched *s, uid_t uid);
void session_free_all(struct sched *s);
