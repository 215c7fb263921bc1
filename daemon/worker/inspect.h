#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* `dsd-worker --inspect PATH [--json]`: what a model is, without loading it. */
#include <stdbool.h>

struct error;

/**
 * inspect_run() - describe a model directory or a .safetensors file on standard output
 *
 * Any well-formed model is described, also one that dsd would refuse: then the description ends with
 * the reason.
 *
 * Return: 0; -EBADMSG and others with the sentence where a file cannot be read or is malformed.
 */
int inspect_run(const char *path, bool json, struct error *err);
