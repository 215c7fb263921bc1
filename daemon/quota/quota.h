#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What each user holds: one table, one way to charge and one to give back. Thread: broker. */
#include <stdint.h>
#include <sys/types.h>

struct error;
struct quota;

enum quota_kind { QUOTA_CONNECTIONS, QUOTA_REQUESTS, QUOTA_PAGES, QUOTA_BYTES, _QUOTA_MAX };

int quota_new(struct quota **ret,
	      const uint64_t limits[_QUOTA_MAX]); /* per uid; UINT64_MAX: none */
struct quota *quota_free(struct quota *q);
/**
 * quota_charge() - @n more of @kind for @uid
 * Return: 0. -EDQUOT with a sentence: the user's limit is reached, nothing was charged. -ENOMEM.
 */
int quota_charge(struct quota *q, uid_t uid, enum quota_kind kind, uint64_t n, struct error *err);
/** quota_uncharge() - gives back what was charged; asserts that it was. */
void quota_uncharge(struct quota *q, uid_t uid, enum quota_kind kind, uint64_t n);
uint64_t quota_used(const struct quota *q, uid_t uid, enum quota_kind kind);
/** quota_total() - of all users: what the rest of the daemon must agree with. */
uint64_t quota_total(const struct quota *q, enum quota_kind kind);
