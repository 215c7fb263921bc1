/* SPDX-License-Identifier: Apache-2.0 */
#include "base/io_real.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cleanup.h"

#define IO_WORKERS_MAX 8u

struct job {
	struct job *next;
	io_work_fn fn;
	void *arg;
	uint64_t tag;
};

struct list {
	struct job *first, **end;
};

struct io_workers {
	pthread_mutex_t lock;
	pthread_cond_t wake;
	struct list todo, done;
	bool stop;
	int event_fd;
	unsigned n_threads;
	pthread_t threads[IO_WORKERS_MAX];
};

static void list_init(struct list *l)
{
	l->first = NULL;
	l->end = &l->first;
}

static void list_push(struct list *l, struct job *j)
{
	j->next = NULL;
	*l->end = j;
	l->end = &j->next;
}

static struct job *list_pop(struct list *l)
{
	struct job *j = l->first;

	if (j) {
		l->first = j->next;
		if (!l->first)
			l->end = &l->first;
	}
	return j;
}

static void *run(void *arg)
{
	struct io_workers *w = arg;

	pthread_mutex_lock(&w->lock);
	for (;;) {
		struct job *j;

		if (w->stop)
			break;
		j = list_pop(&w->todo);
		if (!j) {
			pthread_cond_wait(&w->wake, &w->lock);
			continue;
		}
		pthread_mutex_unlock(&w->lock);
		j->fn(j->arg);
		pthread_mutex_lock(&w->lock);
		list_push(&w->done, j);
		eventfd_write(w->event_fd, 1);
	}
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

int io_workers_new(struct io_workers **ret, unsigned n_threads)
{
	struct io_workers *w;
	sigset_t all, old;
	int r = 0;

	w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	w->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (w->event_fd < 0) {
		free(w);
		return -errno;
	}
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->wake, NULL);
	list_init(&w->todo);
	list_init(&w->done);
	/* Signals belong to the loop. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	for (unsigned i = 0; i < MIN(n_threads, IO_WORKERS_MAX) && r == 0; i++) {
		r = pthread_create(&w->threads[i], NULL, run, w);
		w->n_threads += r == 0;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r) {
		io_workers_free(w);
		return -r;
	}
	*ret = w;
	return 0;
}

struct io_workers *io_workers_free(struct io_workers *w)
{
	struct job *j;

	if (!w)
		return NULL;
	pthread_mutex_lock(&w->lock);
	w->stop = true;
	pthread_cond_broadcast(&w->wake);
	pthread_mutex_unlock(&w->lock);
	for (unsigned i = 0; i < w->n_threads; i++)
		pthread_join(w->threads[i], NULL);
	while ((j = list_pop(&w->todo)) || (j = list_pop(&w->done)))
		free(j);
	fd_close(w->event_fd);
	pthread_cond_destroy(&w->wake);
	pthread_mutex_destroy(&w->lock);
	free(w);
	return NULL;
}

int io_workers_fd(const struct io_workers *w)
{
	return w->event_fd;
}

int io_workers_add(struct io_workers *w, io_work_fn fn, void *arg, uint64_t tag)
{
	struct job *j = malloc(sizeof(*j));

	if (!j)
		return -ENOMEM;
	*j = (struct job){.fn = fn, .arg = arg, .tag = tag};
	pthread_mutex_lock(&w->lock);
	list_push(&w->todo, j);
	pthread_cond_signal(&w->wake);
	pthread_mutex_unlock(&w->lock);
	return 0;
}

bool io_workers_done(struct io_workers *w, uint64_t *ret_tag)
{
	struct job *j;

	pthread_mutex_lock(&w->lock);
	j = list_pop(&w->done);
	pthread_mutex_unlock(&w->lock);
	if (!j)
		return false;
	*ret_tag = j->tag;
	free(j);
	return true;
}
