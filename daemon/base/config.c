/* SPDX-License-Identifier: Apache-2.0 */
/* One row per key; reading, checking and printing walk the same table. A value is parsed whole or
 * refused: "64k" where a count is wanted is an error, not 64. */
#include "base/config.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <ini.h>

#include "base/cleanup.h"
#include "base/error.h"

#define CONFIG_FILE_MAX (1u << 20)
/* inih cuts what is longer and takes the rest of a line for a line: such input is refused instead. */
#define CONFIG_LINE_MAX    198u
#define CONFIG_SECTION_MAX 48u

enum kind { KIND_BYTES, KIND_COUNT, KIND_WORD };

struct key {
	const char *name;
	enum kind kind;
	size_t offset;
	uint64_t min, max; /* numbers; words: max = number of words - 1 */
	const char *const *words;
	const char *help;
};

static const char *const entry_words[] = {"f32", "bf16", "int8", "auto", NULL};
static const char *const verify_words[] = {"adopted", "always", NULL};
static const char *const weight_words[] = {"auto", "f32", "bf16", "q8", "q4", NULL};
static const char *const backend_words[] = {"auto", "uring", "epoll", NULL};
static const char *const level_words[] = {"emerg",  "alert", "crit",  "error", "warning",
					  "notice", "info",  "debug", NULL};

#define FIELD(f) offsetof(struct config, f)
static const struct key keys[] = {
	{"pool.size", KIND_BYTES, FIELD(pool_size), 0, UINT64_C(1) << 46, NULL,
	 "bytes of latent cache over all models (K, M, G); 0: an eighth of the memory"},
	{"pool.entry", KIND_WORD, FIELD(pool_entry), 0, 3, entry_words,
	 "format of a cached row; auto follows the weights"},
	{"pool.verify", KIND_WORD, FIELD(pool_verify), 0, 1, verify_words,
	 "when a cached page's tag is checked: at the first use of an adopted one, or at each use"},
	{"sched.slots", KIND_COUNT, FIELD(sched_slots), 1, 256, NULL, "sequences that run at once"},
	{"sched.step_tokens", KIND_COUNT, FIELD(sched_step_tokens), 16, 7936, NULL,
	 "prompt tokens computed in one step at the most"},
	{"sched.queue", KIND_COUNT, FIELD(sched_queue), 1, 1u << 20, NULL,
	 "sequences that may wait for a slot"},
	{"worker.weights", KIND_WORD, FIELD(worker_weights), 0, 4, weight_words,
	 "precision of the weights; auto: as the files have them, bf16 at most; q8, q4: made at the first load"},
	{"worker.threads", KIND_COUNT, FIELD(worker_threads), 0, 1024, NULL,
	 "0: one for each core"},
	{"worker.cpu_mask", KIND_COUNT, FIELD(worker_cpu_mask), 0, UINT32_MAX, NULL,
	 "instruction sets allowed: 1 AVX2, 2 AVX-512, 4 VNNI, 8 BF16, added up"},
	{"worker.context", KIND_COUNT, FIELD(worker_context), 0, 1u << 20, NULL,
	 "limit on the context in tokens; 0: the model's own"},
	{"worker.stall_seconds", KIND_COUNT, FIELD(worker_stall_seconds), 1, 86400, NULL,
	 "a worker that has work and does not move for so long is replaced"},
	{"conn.max", KIND_COUNT, FIELD(conn_max), 1, 100000, NULL, "connections"},
	{"conn.max_per_uid", KIND_COUNT, FIELD(conn_max_per_uid), 1, 100000, NULL,
	 "connections of one user"},
	{"conn.requests_per_uid", KIND_COUNT, FIELD(conn_requests_per_uid), 1, 1u << 20, NULL,
	 "requests of one user under way"},
	{"conn.bytes_per_uid", KIND_BYTES, FIELD(conn_bytes_per_uid), 1u << 20, UINT64_C(1) << 40,
	 NULL, "bytes of text that the requests of one user may hold (K, M, G)"},
	{"conn.stall_seconds", KIND_COUNT, FIELD(conn_stall_seconds), 1, 86400, NULL,
	 "a client that reads nothing for so long while answers wait is let go"},
	{"memory.max", KIND_BYTES, FIELD(memory_max), 0, UINT64_C(1) << 50, NULL,
	 "bytes of weights and pools that a load may lead to (K, M, G, T); 0: the machine's memory"},
	{"stop.seconds", KIND_COUNT, FIELD(stop_seconds), 0, 3600, NULL,
	 "requests under way may finish for so long after SIGTERM"},
	{"io.backend", KIND_WORD, FIELD(io_backend), 0, 2, backend_words,
	 "how the kernel is asked; auto: io_uring, and epoll where that is refused"},
	{"log.level", KIND_WORD, FIELD(log_level), 0, 7, level_words, "how much is logged"},
};

void config_init(struct config *c)
{
	*c = (struct config){
		.pool_entry = 3,
		.sched_slots = 32,
		.sched_step_tokens = 256,
		.sched_queue = 4096,
		.worker_cpu_mask = UINT32_MAX,
		.worker_stall_seconds = 6,
		.conn_max = 10000,
		.conn_max_per_uid = 256,
		.conn_stall_seconds = 30,
		.conn_requests_per_uid = 4096,
		.conn_bytes_per_uid = 256u << 20,
		.stop_seconds = 5,
		.log_level = 6,
	};
}

static int parse_number(const char *text, bool bytes, uint64_t *ret)
{
	char *end;
	uint64_t v;
	unsigned shift = 0;

	if (!isdigit((unsigned char)text[0]))
		return -EINVAL;
	errno = 0;
	v = strtoull(text, &end, 10);
	if (errno)
		return -EINVAL;
	if (bytes && *end && strchr("KMGT", *end)) {
		shift = (unsigned)(strchr("KMGT", *end) - "KMGT" + 1) * 10;
		end++;
	}
	if (*end || (shift && v > UINT64_MAX >> shift))
		return -EINVAL;
	*ret = v << shift;
	return 0;
}

static int set_key(struct config *c, const struct key *k, const char *value, struct error *err)
{
	uint64_t v = 0;

	if (k->kind == KIND_WORD) {
		char want[128] = "";

		for (v = 0; k->words[v]; v++) {
			if (strcmp(k->words[v], value) == 0)
				break;
			snprintf(want + strlen(want), sizeof(want) - strlen(want), "%s%s",
				 v ? ", " : "", k->words[v]);
		}
		if (!k->words[v])
			return error_set(err, -EINVAL, "%s=%.64s: want one of %s", k->name, value,
					 want);
	} else if (parse_number(value, k->kind == KIND_BYTES, &v) < 0 || v < k->min || v > k->max) {
		return error_set(err, -EINVAL,
				 "%s=%.64s: want a number from %" PRIu64 " to %" PRIu64, k->name,
				 value, k->min, k->max);
	}
	if (k->kind == KIND_BYTES)
		*(uint64_t *)((char *)c + k->offset) = v;
	else
		*(uint32_t *)((char *)c + k->offset) = (uint32_t)v;
	return 0;
}

static bool name_ok(const char *s, size_t n)
{
	if (n == 0 || n >= CONFIG_NAME_MAX || s[0] == '.')
		return false;
	for (size_t i = 0; i < n; i++)
		if (!isalnum((unsigned char)s[i]) && !strchr("-_.", s[i]))
			return false;
	return true;
}

static struct config_model *get_model(struct config *c, const char *name, size_t n,
				      struct error *err)
{
	struct config_model *m;

	if (!name_ok(name, n)) {
		error_set(err, -EINVAL,
			  "model name \"%.*s\": want up to %u letters, digits, '-', '_' or '.'",
			  (int)n, name, CONFIG_NAME_MAX - 1);
		return NULL;
	}
	for (uint32_t i = 0; i < c->n_models; i++)
		if (strlen(c->models[i].name) == n && memcmp(c->models[i].name, name, n) == 0)
			return &c->models[i];
	if (c->n_models == CONFIG_MODELS_MAX) {
		error_set(err, -EINVAL, "more than %u models", CONFIG_MODELS_MAX);
		return NULL;
	}
	m = &c->models[c->n_models++];
	*m = (struct config_model){};
	memcpy(m->name, name, n);
	return m;
}

static int set_share(struct config_model *m, const char *key, const char *value, struct error *err)
{
	char *end;
	double share = strtod(value, &end);

	if (end == value || *end || !(share > 0 && share <= 1))
		return error_set(err, -EINVAL, "%.100s=%.32s: want a share above 0, at most 1", key,
				 value);
	m->share = share;
	return 0;
}

/* model.NAME.path and others; a name may hold dots, so the key is what follows the last. */
static int set_model_key(struct config *c, const char *key, const char *value, struct error *err)
{
	const char *name = key + strlen("model."), *last = strrchr(name, '.');
	struct config_model *m;
	uint64_t v;

	if (!last || (strcmp(last, ".path") != 0 && strcmp(last, ".share") != 0 &&
		      strcmp(last, ".idle_unload") != 0))
		return error_set(err, -EINVAL,
				 "%.100s: want model.NAME.path, .share or .idle_unload", key);
	m = get_model(c, name, (size_t)(last - name), err);
	if (!m)
		return -EINVAL;
	if (strcmp(last, ".share") == 0)
		return set_share(m, key, value, err);
	if (strcmp(last, ".idle_unload") == 0) {
		if (parse_number(value, false, &v) < 0 || v > 31536000)
			return error_set(err, -EINVAL, "%.100s=%.32s: want seconds, 0: never", key,
					 value);
		m->idle_unload = (uint32_t)v;
		return 0;
	}
	if (strlen(value) == 0 || strlen(value) >= sizeof(m->path))
		return error_set(err, -EINVAL, "%.100s: want a path of 1 to %u bytes", key,
				 CONFIG_PATH_MAX - 1);
	strcpy(m->path, value);
	return 0;
}

static int set_one(struct config *c, const char *key, const char *value, struct error *err)
{
	if (strncmp(key, "model.", 6) == 0)
		return set_model_key(c, key, value, err);
	for (size_t i = 0; i < N_ELEMENTS(keys); i++)
		if (strcmp(keys[i].name, key) == 0)
			return set_key(c, &keys[i], value, err);
	return error_set(err, -EINVAL, "no key \"%.100s\"; dsd --check-config lists them", key);
}

int config_set(struct config *c, const char *assignment, struct error *err)
{
	const char *eq = strchr(assignment, '=');
	char key[256];

	if (!eq || eq == assignment || (size_t)(eq - assignment) >= sizeof(key))
		return error_set(err, -EINVAL, "\"%.100s\": want section.key=value", assignment);
	memcpy(key, assignment, (size_t)(eq - assignment));
	key[eq - assignment] = 0;
	return set_one(c, key, eq + 1, err);
}

struct parse {
	struct config *c;
	const char *name;
	struct error *err;
	int r;
};

static int on_line(void *user, const char *section, const char *name, const char *value)
{
	struct parse *p = user;
	char key[256];

	if (p->r < 0)
		return 1;
	if (strlen(section) > CONFIG_SECTION_MAX || strlen(name) > CONFIG_SECTION_MAX) {
		p->r = error_set(p->err, -EINVAL, "[%s] %s: want names of at most %u bytes",
				 section, name, CONFIG_SECTION_MAX);
		return 0;
	}
	if ((size_t)snprintf(key, sizeof(key), "%s.%s", section, name) >= sizeof(key)) {
		p->r = error_set(p->err, -EINVAL, "a key of more than %zu bytes", sizeof(key) - 1);
		return 0;
	}
	p->r = set_one(p->c, key, value ?: "", p->err);
	return p->r == 0;
}

static int check_lines(const char *name, const char *text, size_t n, struct error *err)
{
	unsigned line = 1;

	for (size_t at = 0; at < n; line++) {
		const char *end = memchr(text + at, '\n', n - at);
		size_t len = end ? (size_t)(end - text) - at : n - at;

		if (len > CONFIG_LINE_MAX)
			return error_set(
				err, -EINVAL,
				"%.200s line %u: %zu bytes, want at most %u (--set takes more)",
				name, line, len, CONFIG_LINE_MAX);
		at += len + 1;
	}
	return 0;
}

int config_parse(struct config *c, const char *name, const char *text, size_t n, struct error *err)
{
	_cleanup_(freep) char *copy = NULL;
	struct parse p = {.c = c, .name = name, .err = err};
	int line, r;

	if (n > CONFIG_FILE_MAX)
		return error_set(err, -EFBIG, "%.200s: %zu bytes, want at most %u", name, n,
				 CONFIG_FILE_MAX);
	if (memchr(text, 0, n))
		return error_set(err, -EINVAL, "%.200s: holds a zero byte", name);
	r = check_lines(name, text, n, err);
	if (r < 0)
		return r;
	copy = strndup(text, n);
	if (!copy)
		return -ENOMEM;
	line = ini_parse_string(copy, on_line, &p);
	if (p.r < 0) {
		error_prefix(err, "%.180s line %d", name, line);
		return p.r;
	}
	if (line != 0)
		return error_set(err, -EINVAL,
				 "%.200s line %d: want [section], key = value, or a comment", name,
				 line);
	return 0;
}

static int load_file(struct config *c, const char *path, struct error *err)
{
	_cleanup_(fd_closep) int fd = open(path, O_RDONLY | O_CLOEXEC);
	_cleanup_(freep) char *text = NULL;
	struct stat st;
	ssize_t n;

	if (fd < 0)
		return errno == ENOENT ? 0 : error_set(err, -errno, "%.300s: %m", path);
	if (fstat(fd, &st) == 0 && S_ISCHR(st.st_mode))
		return 0; /* /dev/null: none */
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size > CONFIG_FILE_MAX)
		return error_set(err, -EINVAL, "%.300s: want a file of at most %u bytes", path,
				 CONFIG_FILE_MAX);
	text = malloc((size_t)st.st_size + 1);
	if (!text)
		return -ENOMEM;
	n = read(fd, text, (size_t)st.st_size);
	if (n < 0)
		return error_set(err, -errno, "%.300s: %m", path);
	return config_parse(c, path, text, (size_t)n, err);
}

static int is_conf(const struct dirent *d)
{
	size_t n = strlen(d->d_name);

	return n > 5 && d->d_name[0] != '.' && strcmp(d->d_name + n - 5, ".conf") == 0;
}

int config_load(struct config *c, const char *path, struct error *err)
{
	char dir[CONFIG_PATH_MAX], file[CONFIG_PATH_MAX + 256];
	struct dirent **names;
	int n, r = load_file(c, path, err);

	if (r < 0)
		return r;
	if ((size_t)snprintf(dir, sizeof(dir), "%s.d", path) >= sizeof(dir))
		return error_set(err, -ENAMETOOLONG, "%.200s: too long", path);
	n = scandir(dir, &names, is_conf, alphasort);
	if (n < 0)
		return errno == ENOENT ? 0 : error_set(err, -errno, "%.300s: %m", dir);
	for (int i = 0; i < n; i++) {
		snprintf(file, sizeof(file), "%s/%s", dir, names[i]->d_name);
		if (r == 0)
			r = load_file(c, file, err);
		free(names[i]);
	}
	free(names);
	return r;
}

int config_add_model(struct config *c, const char *spec, struct error *err)
{
	const char *colon = strrchr(spec, ':');
	size_t n_path = colon ? (size_t)(colon - spec) : strlen(spec);
	const char *name;
	struct config_model *m;
	size_t n_name, n_trim;

	/* A colon with a slash behind it belongs to the path. */
	if (colon && strchr(colon, '/')) {
		colon = NULL;
		n_path = strlen(spec);
	}
	for (n_trim = n_path; n_trim > 1 && spec[n_trim - 1] == '/'; n_trim--)
		;
	if (colon) {
		name = colon + 1;
		n_name = strlen(name);
	} else {
		const char *slash = memrchr(spec, '/', n_trim);

		name = slash ? slash + 1 : spec;
		n_name = n_trim - (size_t)(name - spec);
	}
	if (n_trim == 0 || n_trim >= CONFIG_PATH_MAX)
		return error_set(err, -EINVAL, "--model %.100s: want PATH[:NAME]", spec);
	m = get_model(c, name, n_name, err);
	if (!m)
		return -EINVAL;
	memcpy(m->path, spec, n_trim);
	m->path[n_trim] = 0;
	return 0;
}

void config_print(const struct config *c, FILE *f)
{
	for (size_t i = 0; i < N_ELEMENTS(keys); i++) {
		const struct key *k = &keys[i];
		uint64_t v = k->kind == KIND_BYTES
				     ? *(const uint64_t *)((const char *)c + k->offset)
				     : *(const uint32_t *)((const char *)c + k->offset);

		fprintf(f, "# %s", k->help);
		if (k->kind == KIND_WORD) {
			fprintf(f, " (");
			for (size_t w = 0; k->words[w]; w++)
				fprintf(f, "%s%s", w ? ", " : "", k->words[w]);
			fprintf(f, ")\n%s=%s\n", k->name, k->words[v]);
		} else {
			fprintf(f, " (%" PRIu64 " to %" PRIu64 ")\n%s=%" PRIu64 "\n", k->min,
				k->max, k->name, v);
		}
	}
	for (uint32_t i = 0; i < c->n_models; i++) {
		fprintf(f, "model.%s.path=%s\n", c->models[i].name, c->models[i].path);
		if (c->models[i].share > 0)
			fprintf(f, "model.%s.share=%g\n", c->models[i].name, c->models[i].share);
	}
}
