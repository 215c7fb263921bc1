/* SPDX-License-Identifier: Apache-2.0 */
#include "sampling.h"

#include <stdlib.h>
#include <string.h>

#include "output.h"

int sampling_set_stop(struct dsc_request *request, const struct arg_list *list)
{
	struct dsc_stop *stop = calloc(list->n + 1, sizeof(*stop));

	if (!stop)
		return say(STATUS_FAILED, "out of memory");
	for (size_t i = 0; i < list->n; i++)
		stop[i] = (struct dsc_stop){list->items[i], strlen(list->items[i])};
	request->stop = stop;
	request->n_stop = list->n;
	return 0;
}
