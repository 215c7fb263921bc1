#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* The verbs: one file each. */
#include "args.h"

#define N_OPTIONS(table) (sizeof(table) / sizeof((table)[0]))

extern const struct verb verb_ping;
extern const struct verb verb_generate;
extern const struct verb verb_chat;
extern const struct verb verb_batch;
extern const struct verb verb_tokenize;
extern const struct verb verb_detokenize;
extern const struct verb verb_score;
extern const struct verb verb_models;
extern const struct verb verb_stats;
extern const struct verb verb_top;
extern const struct verb verb_ps;
extern const struct verb verb_cancel;
extern const struct verb verb_publish;
extern const struct verb verb_unpublish;
extern const struct verb verb_evict;
extern const struct verb verb_load;
extern const struct verb verb_unload;
extern const struct verb verb_reload;
extern const struct verb verb_drain;
extern const struct verb verb_session;
extern const struct verb verb_bench;
