/* SPDX-License-Identifier: Apache-2.0 */
#include "quota/quota.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

/* A user's row stays when all is given back: there are few users, and a row is 40 bytes. */
struct row {
	uid_t uid;
	bool used;
	uint64_t held[_QUOTA_MAX];
};

struct quota {
	uint64_t limits[_QUOTA_MAX];
	uint64_t total[_QUOTA_MAX];
	struct row *rows; /* open addressing, a power of two */
	uint32_t n_alloc, n_used;
};

static const char *const kind_names[_QUOTA_MAX] = {"connections", "requests", "pages",
						   "bytes of requests"};

int quota_new(struct quota **ret, const uint64_t limits[_QUOTA_MAX])
{
	struct quota *q = calloc(1, sizeof(*q));

	if (!q)
		return -ENOMEM;
	memcpy(q->limits, limits, sizeof(q->limits));
	q->n_alloc = 16;
	q->rows = calloc(q->n_alloc, sizeof(*q->rows));
	if (!q->rows) {
		free(q);
		return -ENOMEM;
	}
	*ret = q;
	return 0;
}

struct quota *quota_free(struct quota *q)
{
	if (q)
		free(q->rows);
	free(q);
	return NULL;
}

static struct row *find(struct row *rows, uint32_t n_alloc, uid_t uid)
{
	uint32_t i = (uint32_t)uid * 2654435761u;

	for (;; i++) {
		struct row *r = &rows[i & (n_alloc - 1)];

		if (!r->used || r->uid == uid)
			return r;
	}
}

static int grow(struct quota *q)
{
	uint32_t n = q->n_alloc * 2;
	struct row *rows = calloc(n, sizeof(*rows));

	if (!rows)
		return -ENOMEM;
	for (uint32_t i = 0; i < q->n_alloc; i++)
		if (q->rows[i].used)
			*find(rows, n, q->rows[i].uid) = q->rows[i];
	free(q->rows);
	q->rows = rows;
	q->n_alloc = n;
	return 0;
}

int quota_charge(struct quota *q, uid_t uid, enum quota_kind kind, uint64_t n, struct error *err)
{
	struct row *r = find(q->rows, q->n_alloc, uid);

	if (!r->used) {
		if (q->n_used * 2 >= q->n_alloc) {
			int e = grow(q);

			if (e < 0)
				return e;
			r = find(q->rows, q->n_alloc, uid);
		}
		*r = (struct row){.uid = uid, .used = true};
		q->n_used++;
	}
	if (n > q->limits[kind] || r->held[kind] > q->limits[kind] - n)
		return error_set(err, -EDQUOT, "this user holds %llu %s of at most %llu",
				 (unsigned long long)r->held[kind], kind_names[kind],
				 (unsigned long long)q->limits[kind]);
	r->held[kind] += n;
	q->total[kind] += n;
	return 0;
}

void quota_uncharge(struct quota *q, uid_t uid, enum quota_kind kind, uint64_t n)
{
	struct row *r = find(q->rows, q->n_alloc, uid);

	assert(r->used && r->held[kind] >= n && q->total[kind] >= n);
	r->held[kind] -= n;
	q->total[kind] -= n;
}

uint64_t quota_used(const struct quota *q, uid_t uid, enum quota_kind kind)
{
	const struct row *r = find(q->rows, q->n_alloc, uid);

	return r->used ? r->held[kind] : 0;
}

uint64_t quota_total(const struct quota *q, enum quota_kind kind)
{
	return q->total[kind];
}
