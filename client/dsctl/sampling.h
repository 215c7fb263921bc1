#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* Options of drawing tokens, which every verb that generates has: elements of its option table. `type` is the
 * verb's struct, `member` the struct dsc_request in it. */
#include <dsclient.h>

#include "args.h"

/**
 * sampling_set_stop() - put the texts of SAMPLING_STOP's list into a request
 *
 * Return: 0, or an exit status after a sentence. Free request->stop.
 */
int sampling_set_stop(struct dsc_request *request, const struct arg_list *list);

/* `member` is the list. */
#define SAMPLING_STOP(type, member)                                                                \
	{                                                                                          \
		"--stop", "TEXT", "end before TEXT; may be repeated", ARG_LIST,                    \
			.offset = offsetof(type, member)                                           \
	}

#define SAMPLING_NUMBER(type, member, field, bit)                                                  \
	.offset = offsetof(type, member.field), .set_offset = offsetof(type, member.set),          \
	.bits = (bit)

#define SAMPLING_OPTIONS(type, member)                                                             \
	{"--max-tokens", "N", "stop after so many; default: what the context leaves", ARG_U32,     \
	 SAMPLING_NUMBER(type, member, max_tokens, DSC_SET_MAX_TOKENS)},                           \
		{"--min-tokens", "N", "no end token before so many", ARG_U32,                      \
		 SAMPLING_NUMBER(type, member, min_tokens, DSC_SET_MIN_TOKENS)},                   \
		{"--temperature", "T",                                                             \
		 "0: always the likeliest token; default: the model's, else 1", ARG_FLOAT,         \
		 SAMPLING_NUMBER(type, member, temperature, DSC_SET_TEMPERATURE)},                 \
		{"--top-k", "K", "draw from the K likeliest; 0: from all", ARG_U32,                \
		 SAMPLING_NUMBER(type, member, top_k, DSC_SET_TOP_K)},                             \
		{"--top-p", "P", "draw from the likeliest that make up P; 1: from all", ARG_FLOAT, \
		 SAMPLING_NUMBER(type, member, top_p, DSC_SET_TOP_P)},                             \
		{"--min-p", "P", "leave out what is less likely than P times the likeliest",       \
		 ARG_FLOAT, SAMPLING_NUMBER(type, member, min_p, DSC_SET_MIN_P)},                  \
		{"--seed", "N", "the same seed draws the same tokens", ARG_U64,                    \
		 SAMPLING_NUMBER(type, member, seed, DSC_SET_SEED)},                               \
		{"--repetition-penalty", "X", "divide the logits of tokens that occurred; 1: off", \
		 ARG_FLOAT,                                                                        \
		 SAMPLING_NUMBER(type, member, repetition_penalty, DSC_SET_REPETITION_PENALTY)},   \
		{"--presence-penalty", "X",                                                        \
		 "subtract from the logits of tokens that were generated; 0: off", ARG_FLOAT,      \
		 SAMPLING_NUMBER(type, member, presence_penalty, DSC_SET_PRESENCE_PENALTY)},       \
		{"--frequency-penalty", "X", "the same for each time they were; 0: off",           \
		 ARG_FLOAT,                                                                        \
		 SAMPLING_NUMBER(type, member, frequency_penalty, DSC_SET_FREQUENCY_PENALTY)},     \
	{                                                                                          \
		"--ignore-eos", NULL, "go on after an end token", ARG_BITS,                        \
			.set_offset = offsetof(type, member.set), .bits = DSC_SET_IGNORE_EOS       \
	}
