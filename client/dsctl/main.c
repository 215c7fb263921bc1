/* SPDX-License-Identifier: Apache-2.0 */
/* dsctl: dsd from the command line. args.h parses, one file per verb does. */
#include <locale.h>

#include "output.h"
#include "verbs.h"

int main(int argc, char **argv)
{
	static const struct verb *const verbs[] = {
		&verb_ping,       &verb_generate, &verb_chat,    &verb_batch,     &verb_tokenize,
		&verb_detokenize, &verb_score,    &verb_models,  &verb_stats,     &verb_top,
		&verb_ps,         &verb_cancel,   &verb_publish, &verb_unpublish, &verb_evict,
		&verb_load,       &verb_unload,   &verb_reload,  &verb_drain,     &verb_session,
		&verb_bench,
	};

	setlocale(LC_CTYPE,
		  ""); /* tables measure words by it; numbers stay as programs read them */
	return out_finish(args_run(verbs, N_OPTIONS(verbs), argc, argv));
}
