#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Configuration: INI files and --set section.key=value, one table of keys with their ranges. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct error;

#define CONFIG_MODELS_MAX 16u
#define CONFIG_NAME_MAX   64u
#define CONFIG_PATH_MAX   1024u

struct config_model {
	char name[CONFIG_NAME_MAX];
	char path[CONFIG_PATH_MAX];
	double share;         /* of pool.size; 0: what the others leave */
	uint32_t idle_unload; /* seconds without a request; 0: never */
};

/* What the daemon runs with; config_init() gives the defaults that --check-config prints. */
struct config {
	uint64_t pool_size;   /* bytes over all models; 0: an eighth of the memory, at most 4 GiB */
	uint32_t pool_entry;  /* enum page_entry, or _PAGE_ENTRY_MAX: what fits the weights */
	uint32_t pool_verify; /* enum pool_verify */
	uint32_t sched_slots;
	uint32_t sched_step_tokens;
	uint32_t sched_queue;    /* requests that may wait */
	uint32_t worker_weights; /* enum control_weights */
	uint32_t worker_threads; /* 0: as many as CPUs */
	uint32_t worker_cpu_mask;
	uint32_t worker_context; /* limit on the context; 0: the model's own */
	uint32_t worker_stall_seconds;
	uint32_t conn_max, conn_max_per_uid, conn_stall_seconds, conn_requests_per_uid;
	uint64_t conn_bytes_per_uid;
	uint64_t memory_max;   /* bytes of weights and pools; 0: the machine's */
	uint32_t stop_seconds; /* for requests under way after SIGTERM */
	uint32_t io_backend;   /* enum io_backend */
	uint32_t log_level;
	uint32_t n_models;
	struct config_model models[CONFIG_MODELS_MAX];
};

void config_init(struct config *c);
/** config_set() - one "section.key=value"; -EINVAL names the key, what was got and what was wanted. */
int config_set(struct config *c, const char *assignment, struct error *err);
/** config_parse() - INI text as inih reads it. Thread: any. */
int config_parse(struct config *c, const char *name, const char *text, size_t n, struct error *err);
/** config_load() - @path if it is there, then *.conf of @path.d in order of names. */
int config_load(struct config *c, const char *path, struct error *err);
/** config_add_model() - "PATH[:NAME]" as the command line has it. */
int config_add_model(struct config *c, const char *spec, struct error *err);
/** config_print() - every key with its value, range and meaning. */
void config_print(const struct config *c, FILE *f);
