/* SPDX-License-Identifier: Apache-2.0 */
/* A model's pool across lives of the daemon: adopted from the store, or made and handed to it. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/log.h"
#include "broker/model_impl.h"
#include "broker/server.h"
#include "pool/pool.h"

#define SETTLES_USEC                                                                               \
	60000000u /* a life with an adopted pool that lasts so long was none of its doing */

/* One model's pool, whatever else is loaded: by name, digest and form. */
static void pool_name(const struct model *m, const char *part, char ret[STORE_NAME_BYTES])
{
	const struct image_header *h = m->image.h;
	const struct hash_part parts[] = {{m->cfg.name, strlen(m->cfg.name)},
					  {h->digest, sizeof(h->digest)},
					  {&h->entry, sizeof(h->entry)}};
	uint8_t mac[HASH_MAC_BYTES];
	char hex[2 * HASH_MAC_BYTES + 1];

	hash_mac(mac, m->server->key, parts, N_ELEMENTS(parts));
	hash_hex(hex, mac, sizeof(mac));
	snprintf(ret, STORE_NAME_BYTES, "pool-%s.%s", part, hex);
}

static int adopt(struct model *m, const struct pool_config *cfg, int data_fd, int meta_fd)
{
	struct pool_stats st;
	struct error err = {};
	int r = pool_adopt(&m->pool, cfg, data_fd, meta_fd, &err);

	if (r < 0) {
		log_event(EVENT_POOL_DISCARDED, &(struct log_fields){.model = m->cfg.name},
			  "model %s: what the store kept is not adopted: %s; the cache starts cold",
			  m->cfg.name, error_text(&err, r));
		return r;
	}
	pool_get_stats(m->pool, &st);
	m->settles_usec = io_now_usec(m->server->io) + SETTLES_USEC;
	server_wake_at(m->server, m->settles_usec);
	log_event(
		EVENT_POOL_ADOPTED, &(struct log_fields){.model = m->cfg.name},
		"model %s: adopted the pool of the daemon before: %llu pages to be verified, %llu refused",
		m->cfg.name, (unsigned long long)st.adopted, (unsigned long long)st.refused);
	return 0;
}

int model_keep_pool(struct model *m, const struct pool_config *cfg, struct error *err)
{
	struct store *st = &m->server->store;
	char data[STORE_NAME_BYTES], meta[STORE_NAME_BYTES];
	int data_fd, meta_fd, r = -ENOENT;

	pool_name(m, "data", data);
	pool_name(m, "meta", meta);
	data_fd = store_take(st, data);
	meta_fd = store_take(st, meta);
	m->pool_number = ++m->server->n_pools;
	if (data_fd >= 0 && meta_fd >= 0)
		r = adopt(m, cfg, data_fd, meta_fd);
	if (r == 0)
		return 0;
	if (data_fd >= 0)
		store_remove(st, data);
	if (meta_fd >= 0)
		store_remove(st, meta);
	fd_close(data_fd);
	fd_close(meta_fd);
	r = pool_new(&m->pool, cfg, err);
	if (r < 0)
		return r;
	r = store_push(st, data, pool_data_fd(m->pool));
	if (r == 0)
		r = store_push(st, meta, pool_meta_fd(m->pool));
	if (r < 0)
		log_warning("model %s: systemd does not keep the pool: %s", m->cfg.name,
			    strerror(-r));
	return 0;
}

void model_forget_pool(struct model *m)
{
	char name[STORE_NAME_BYTES];

	if (m->server->stopping || pool_n_users(m->pool) > 1)
		return;
	pool_name(m, "data", name);
	store_remove(&m->server->store, name);
	pool_name(m, "meta", name);
	store_remove(&m->server->store, name);
}

bool model_make_tags(struct model *m)
{
	const struct server *s = m->server;

	/* Tags are for whoever adopts the pool, and for checks. */
	if (!m->pool || (!s->store.on && s->cfg.pool_verify != POOL_VERIFY_ALWAYS))
		return false;
	pool_tag_next(m->pool, tag_make(TAG_POOL, 0, m->pool_number));
	return pool_tag_busy(m->pool);
}

bool model_on_tag(struct model *m, uint32_t pool_number)
{
	if (!m->pool || m->pool_number != pool_number)
		return false;
	pool_tag_done(m->pool);
	model_make_tags(m);
	return true;
}

void model_settled(struct model *m)
{
	m->settles_usec = 0;
	if (m->pool)
		pool_settled(m->pool);
}
