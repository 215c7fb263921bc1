/* SPDX-License-Identifier: Apache-2.0 */
#include "base/config.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/error.h"

static struct config c;
static struct error err;

static int reset(void **state)
{
	(void)state;
	config_init(&c);
	err = (struct error){};
	return 0;
}

static int parse(const char *text)
{
	return config_parse(&c, "test.conf", text, strlen(text), &err);
}

static uint64_t field(size_t offset, bool is_64)
{
	return is_64 ? *(const uint64_t *)((const char *)&c + offset)
		     : *(const uint32_t *)((const char *)&c + offset);
}

static void every_number_has_its_range(void **state)
{
	static const struct {
		const char *name;
		size_t offset;
		bool is_64;
		uint64_t min, max;
	} keys[] = {
		{"pool.size", offsetof(struct config, pool_size), true, 0, UINT64_C(1) << 46},
		{"sched.slots", offsetof(struct config, sched_slots), false, 1, 256},
		{"sched.step_tokens", offsetof(struct config, sched_step_tokens), false, 16, 7936},
		{"sched.queue", offsetof(struct config, sched_queue), false, 1, 1u << 20},
		{"worker.threads", offsetof(struct config, worker_threads), false, 0, 1024},
		{"worker.cpu_mask", offsetof(struct config, worker_cpu_mask), false, 0, UINT32_MAX},
		{"worker.context", offsetof(struct config, worker_context), false, 0, 1u << 20},
		{"conn.max", offsetof(struct config, conn_max), false, 1, 100000},
		{"conn.max_per_uid", offsetof(struct config, conn_max_per_uid), false, 1, 100000},
	};
	char line[128];

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(keys); i++) {
		const uint64_t good[] = {keys[i].min, keys[i].max};

		for (int k = 0; k < 2; k++) {
			snprintf(line, sizeof(line), "%s=%llu", keys[i].name,
				 (unsigned long long)good[k]);
			assert_int_equal(config_set(&c, line, &err), 0);
			assert_int_equal(field(keys[i].offset, keys[i].is_64), good[k]);
		}
		snprintf(line, sizeof(line), "%s=%llu", keys[i].name,
			 (unsigned long long)keys[i].max + 1);
		assert_int_equal(config_set(&c, line, &err), -EINVAL);
		assert_non_null(strstr(err.text, keys[i].name));
		assert_non_null(strstr(err.text, "want a number from"));
		if (keys[i].min > 0) {
			snprintf(line, sizeof(line), "%s=%llu", keys[i].name,
				 (unsigned long long)keys[i].min - 1);
			assert_int_equal(config_set(&c, line, &err), -EINVAL);
		}
		assert_int_equal(field(keys[i].offset, keys[i].is_64), keys[i].max);
	}
}

static void words_are_taken_whole(void **state)
{
	(void)state;
	assert_int_equal(config_set(&c, "pool.entry=int8", &err), 0);
	assert_int_equal(c.pool_entry, 2);
	assert_int_equal(config_set(&c, "worker.weights=bf16", &err), 0);
	assert_int_equal(c.worker_weights, 2);
	assert_int_equal(config_set(&c, "worker.weights=q4", &err), 0);
	assert_int_equal(c.worker_weights, 4);
	assert_int_equal(config_set(&c, "log.level=debug", &err), 0);
	assert_int_equal(c.log_level, 7);
	assert_int_equal(config_set(&c, "io.backend=epoll", &err), 0);
	assert_int_equal(c.io_backend, 2);
	assert_int_equal(config_set(&c, "io.backend=select", &err), -EINVAL);
	assert_int_equal(config_set(&c, "pool.entry=int", &err), -EINVAL);
	assert_string_equal(err.text, "pool.entry=int: want one of f32, bf16, int8, auto");
	assert_int_equal(config_set(&c, "pool.entry=", &err), -EINVAL);
	assert_int_equal(c.pool_entry, 2);
}

static void numbers_are_taken_whole(void **state)
{
	static const char *const bad[] = {
		"sched.slots=4 ",
		"sched.slots= 4",
		"sched.slots=-1",
		"sched.slots=+1",
		"sched.slots=0x4",
		"sched.slots=4k",
		"sched.slots=4K",
		"sched.slots=",
		"pool.size=1KK",
		"pool.size=1Kb",
		"pool.size=K",
		"pool.size=1.5G",
		"pool.size=99999999999999999999",
		"pool.size=18014398509481984K",
	};

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(bad); i++)
		assert_int_equal(config_set(&c, bad[i], &err), -EINVAL);
	assert_int_equal(c.sched_slots, 32);
	assert_int_equal(config_set(&c, "pool.size=3M", &err), 0);
	assert_int_equal(c.pool_size, 3u << 20);
	assert_int_equal(config_set(&c, "pool.size=2T", &err), 0);
	assert_int_equal(c.pool_size, UINT64_C(2) << 40);
}

static void unknown_keys_are_named(void **state)
{
	static const char *const bad[] = {"sched.slot=1", "slots=1",      ".=1",
					  "=1",           "sched.slots",  "sched.slots.=1",
					  "model.a=1",    "model.path=x", "model.a.size=1"};

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(bad); i++)
		assert_int_equal(config_set(&c, bad[i], &err), -EINVAL);
	config_set(&c, "sched.slot=1", &err);
	assert_non_null(strstr(err.text, "no key \"sched.slot\""));
}

static void file_names_its_line(void **state)
{
	(void)state;
	assert_int_equal(parse("# why\n[sched]\nslots = 4 ; four\n\n[log]\nlevel: warning\n"), 0);
	assert_int_equal(c.sched_slots, 4);
	assert_int_equal(c.log_level, 4);
	assert_int_equal(parse("[sched]\nslots = 5\nslots = 0\n"), -EINVAL);
	assert_string_equal(err.text,
			    "test.conf line 3: sched.slots=0: want a number from 1 to 256");
	assert_int_equal(parse("[sched]\nslots\n"), -EINVAL);
	assert_non_null(strstr(err.text, "test.conf line 2"));
	assert_int_equal(parse("[sched\n"), -EINVAL);
	assert_int_equal(config_parse(&c, "x", "[log]\nlevel=in\0fo\n", 19, &err), -EINVAL);
	assert_non_null(strstr(err.text, "zero byte"));
}

/* inih cuts a line of more than 199 bytes in two and a name of more than 49 short, silently. */
static void lines_that_the_parser_would_cut_are_refused(void **state)
{
	char text[600];
	int n;

	(void)state;
	n = snprintf(text, sizeof(text), "[model.a]\npath = /%.*s\n", 190, "");
	for (int i = 0; i < 190; i++)
		text[n - 1 + i] = 'p';
	strcpy(text + n - 1 + 190, "\nshare = 0.5\n");
	assert_int_equal(parse(text), 0);
	assert_int_equal(strlen(c.models[0].path), 191);
	strcpy(text + n - 1 + 190, "ppppppppppppppp=share\nshare = 0.5\n");
	assert_int_equal(parse(text), -EINVAL);
	assert_non_null(strstr(err.text, "line 2"));
	snprintf(text, sizeof(text), "[model.%050d]\npath = /x\n", 1);
	assert_int_equal(parse(text), -EINVAL);
	assert_int_equal(c.n_models, 1);
}

static void models_are_added_by_path_and_name(void **state)
{
	static const struct {
		const char *spec, *path, *name;
	} good[] = {
		{"/m/lite", "/m/lite", "lite"},
		{"/m/lite/", "/m/lite", "lite"},
		{"/m/lite///:x", "/m/lite", "x"},
		{"lite", "lite", "lite"},
		{"/m:a/lite", "/m:a/lite", "lite"},
		{"/m:a/b:c", "/m:a/b", "c"},
		{"/m/a:b:c", "/m/a:b", "c"},
		{"./f.gguf", "./f.gguf", "f.gguf"},
		{"/:root", "/", "root"},
	};
	static const char *const bad[] = {"",         ":",     ":x",     "/",       "///",
					  "/m/lite:", "/m/..", "/m/a b", "/m/a:b c"};

	(void)state;
	for (size_t i = 0; i < N_ELEMENTS(good); i++) {
		config_init(&c);
		assert_int_equal(config_add_model(&c, good[i].spec, &err), 0);
		assert_int_equal(c.n_models, 1);
		assert_string_equal(c.models[0].path, good[i].path);
		assert_string_equal(c.models[0].name, good[i].name);
	}
	config_init(&c);
	for (size_t i = 0; i < N_ELEMENTS(bad); i++)
		assert_int_equal(config_add_model(&c, bad[i], &err), -EINVAL);
	assert_int_equal(c.n_models, 0);
}

static void model_limits_hold(void **state)
{
	char spec[2 * CONFIG_PATH_MAX];

	(void)state;
	snprintf(spec, sizeof(spec), "/m:%063d", 1);
	assert_int_equal(config_add_model(&c, spec, &err), 0);
	assert_int_equal(strlen(c.models[0].name), CONFIG_NAME_MAX - 1);
	snprintf(spec, sizeof(spec), "/m:%064d", 1);
	assert_int_equal(config_add_model(&c, spec, &err), -EINVAL);
	snprintf(spec, sizeof(spec), "/%01022d:x", 1);
	assert_int_equal(config_add_model(&c, spec, &err), 0);
	snprintf(spec, sizeof(spec), "/%01023d:y", 1);
	assert_int_equal(config_add_model(&c, spec, &err), -EINVAL);
	for (unsigned i = c.n_models; i < CONFIG_MODELS_MAX; i++) {
		snprintf(spec, sizeof(spec), "/m%u", i);
		assert_int_equal(config_add_model(&c, spec, &err), 0);
	}
	assert_int_equal(config_add_model(&c, "/more", &err), -EINVAL);
	assert_int_equal(config_add_model(&c, "/again:m3", &err), 0); /* replaces its path */
	assert_int_equal(c.n_models, CONFIG_MODELS_MAX);
}

static void share_is_above_zero_and_at_most_one(void **state)
{
	static const char *const bad[] = {"0", "-0.5", "1.01", "nan", "inf", "", "x", "0.5x"};
	char line[64];

	(void)state;
	assert_int_equal(config_set(&c, "model.a.b.share=0.25", &err), 0);
	assert_string_equal(c.models[0].name, "a.b");
	assert_true(c.models[0].share == 0.25);
	for (size_t i = 0; i < N_ELEMENTS(bad); i++) {
		snprintf(line, sizeof(line), "model.a.b.share=%s", bad[i]);
		assert_int_equal(config_set(&c, line, &err), -EINVAL);
		assert_true(c.models[0].share == 0.25);
	}
}

static void write_file(const char *dir, const char *name, const char *text)
{
	char path[512];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "we");
	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
}

static void drop_ins_come_in_order_of_names(void **state)
{
	char dir[] = "/tmp/dsd-config-XXXXXX", path[256], drop[256], cmd[512];

	(void)state;
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/dsd.conf", dir);
	snprintf(drop, sizeof(drop), "%s/dsd.conf.d", dir);
	assert_int_equal(config_load(&c, path, &err), 0); /* nothing there: defaults */
	assert_int_equal(c.sched_slots, 32);
	assert_int_equal(mkdir(drop, 0700), 0);
	write_file(dir, "dsd.conf", "[sched]\nslots=1\nqueue=1\nstep_tokens=16\n");
	/* Made in no order, so that neither order of a directory is the right one by chance. */
	write_file(drop, "20-b.conf", "[sched]\nslots=20\nqueue=20\n");
	write_file(drop, "40-d.conf", "[sched]\nslots=44\n");
	write_file(drop, "10-a.conf", "[sched]\nslots=10\nqueue=10\nstep_tokens=100\n");
	write_file(drop, "30-c.conf", "[sched]\nslots=30\n");
	write_file(drop, "50.conf.bak", "[sched]\nslots=50\n");
	write_file(drop, ".60.conf", "[sched]\nslots=60\n");
	assert_int_equal(config_load(&c, path, &err), 0);
	assert_int_equal(c.sched_slots, 44);
	assert_int_equal(c.sched_queue, 20);
	assert_int_equal(c.sched_step_tokens, 100);
	assert_int_equal(config_set(&c, "sched.slots=7", &err), 0);
	assert_int_equal(c.sched_slots, 7);
	write_file(drop, "15.conf", "[sched]\nslots=x\n");
	assert_int_equal(config_load(&c, path, &err), -EINVAL);
	assert_non_null(strstr(err.text, "15.conf line 2"));
	snprintf(cmd, sizeof(cmd), "rm -r %s", dir);
	assert_int_equal(system(cmd), 0);
}

static void printed_keys_can_be_set_again(void **state)
{
	char *text = NULL, *first, *rest;
	size_t n;
	FILE *f = open_memstream(&text, &n);
	unsigned n_keys = 0;

	(void)state;
	assert_int_equal(config_set(&c, "pool.entry=bf16", &err), 0);
	assert_int_equal(config_set(&c, "model.x.path=/a=b", &err), 0);
	assert_int_equal(config_set(&c, "model.x.share=0.5", &err), 0);
	config_print(&c, f);
	fclose(f);
	first = strdup(text);
	config_init(&c);
	rest = text;
	for (char *line; (line = strsep(&rest, "\n"));)
		if (line[0] && line[0] != '#') {
			assert_int_equal(config_set(&c, line, &err), 0);
			n_keys++;
		}
	free(text);
	text = NULL;
	f = open_memstream(&text, &n);
	config_print(&c, f);
	fclose(f);
	assert_string_equal(first, text);
	assert_true(n_keys >= 14);
	free(text);
	free(first);
}

#define TEST(f) cmocka_unit_test_setup(f, reset)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(every_number_has_its_range),
		TEST(words_are_taken_whole),
		TEST(numbers_are_taken_whole),
		TEST(unknown_keys_are_named),
		TEST(file_names_its_line),
		TEST(lines_that_the_parser_would_cut_are_refused),
		TEST(models_are_added_by_path_and_name),
		TEST(model_limits_hold),
		TEST(share_is_above_zero_and_at_most_one),
		TEST(drop_ins_come_in_order_of_names),
		TEST(printed_keys_can_be_set_again),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
