#pragma once
/* SPDX-License-Identifier: Apache-2.0 */
/* What the worker binary does for people without a daemon. */

/**
 * worker_exec() - become dsd-worker
 * @argv: argv[0] is set here; ends with NULL
 *
 * Found by $DSD_WORKER, beside dsctl, where a build tree has it, or where it is installed.
 * Return: an exit status, after a sentence, where there is none or it cannot be run.
 */
int worker_exec(char **argv);
