/* SPDX-License-Identifier: Apache-2.0 */
/* The editor is libedit with a reader of characters of our own, which waits for the keyboard and for signals
 * at once.
 *
 * Ctrl-C (a signal, or a character where the terminal makes none) becomes the key that is bound to cut(). The
 * signals that must find the terminal as it was are held back while a line is edited: those that end the program
 * end the line first and come through after it; SIGTSTP comes through at once, between handing the
 * terminal back and taking it again. */
#include "line.h"

#include <errno.h>
#include <histedit.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include <wchar.h>

#define HISTORY_LINES 1000
#define READ_BYTES    (64u << 10)
#define KEY_CUT       3 /* Ctrl-C */

struct line_reader {
	int fd, signal_fd;
	bool cut;       /* Ctrl-C came */
	bool continued; /* which prompt to show */

	/* edited */
	EditLine *el;
	History *history;
	sigset_t held;
	int held_fd;
	mbstate_t partial; /* a character of which not all bytes have come */

	/* as it comes */
	char *data;
	size_t start, end, size;
	bool ended;
};

static const int ending[] = {SIGHUP, SIGTERM, SIGQUIT};
#define N_ENDING (sizeof(ending) / sizeof(ending[0]))

/* Takes what made signal_fd readable. */
static bool take_interrupt(struct line_reader *l)
{
	struct signalfd_siginfo info;

	return read(l->signal_fd, &info, sizeof(info)) == sizeof(info);
}

/* ---------------------------------------------------------------- the editor */

static char *prompt(EditLine *el)
{
	static char first[] = "> ", further[] = ". ";
	struct line_reader *l = NULL;

	el_get(el, EL_CLIENTDATA, &l);
	return l->continued ? further : first;
}

/* What was typed stays in sight, and a new line begins. */
static unsigned char cut(EditLine *el, wint_t key)
{
	const LineInfo *line = el_line(el);
	struct line_reader *l = NULL;

	(void)key;
	el_get(el, EL_CLIENTDATA, &l);
	l->cut = true;
	el_cursor(el, (int)(line->lastchar - line->cursor));
	el_insertstr(el, "^C");
	el_push(el, "\n");
	return CC_REFRESH;
}

/* A held signal is there. Return: 0, -EINTR: one that ends the program. */
static int take_held(struct line_reader *l)
{
	sigset_t pending, one;

	sigpending(&pending);
	for (size_t i = 0; i < N_ENDING; i++)
		if (sigismember(&pending, ending[i]))
			return -EINTR;
	sigemptyset(&one);
	if (sigismember(&pending, SIGWINCH)) {
		sigaddset(&one, SIGWINCH);
		sigtimedwait(&one, NULL, &(struct timespec){});
		el_resize(l->el);
	}
	if (sigismember(&pending, SIGTSTP)) {
		sigaddset(&one, SIGTSTP);
		el_set(l->el, EL_PREP_TERM, 0);
		sigprocmask(SIG_UNBLOCK, &one, NULL); /* stops here */
		sigprocmask(SIG_BLOCK, &one, NULL);
		el_set(l->el, EL_PREP_TERM, 1);
		el_set(l->el, EL_REFRESH);
	}
	return 0;
}

/* One byte of the keyboard. Return: 1: *ret is a character, 0: the end, -EAGAIN: not all of it yet. */
static int take_byte(struct line_reader *l, wchar_t *ret)
{
	char byte;
	ssize_t n = read(l->fd, &byte, 1);

	if (n < 0)
		return errno == EINTR || errno == EAGAIN ? -EAGAIN : -errno;
	if (n == 0)
		return 0;
	switch (mbrtowc(ret, &byte, 1, &l->partial)) {
	case (size_t)-1: /* not a character of this locale */
		l->partial = (mbstate_t){};
		return -EAGAIN;
	case (size_t)-2:
		return -EAGAIN;
	default:
		return 1;
	}
}

static int next_character(EditLine *el, wchar_t *ret)
{
	struct line_reader *l = NULL;

	el_get(el, EL_CLIENTDATA, &l);
	for (;;) {
		struct pollfd p[] = {
			{.fd = l->fd, .events = POLLIN},
			{.fd = l->signal_fd, .events = POLLIN},
			{.fd = l->held_fd, .events = POLLIN},
		};
		int r = poll(p, 3, -1);

		if (r < 0 && errno != EINTR)
			return -1;
		if (r < 0)
			continue;
		if (p[1].revents && take_interrupt(l)) {
			*ret = KEY_CUT;
			return 1;
		}
		if (p[2].revents && take_held(l) < 0)
			return 0;
		if (!p[0].revents)
			continue;
		r = take_byte(l, ret);
		if (r != -EAGAIN)
			return r < 0 ? -1 : r;
	}
}

/* The terminal to draw on; NULL: none. */
static FILE *screen(void)
{
	return isatty(STDOUT_FILENO) ? stdout : isatty(STDERR_FILENO) ? stderr : NULL;
}

static int open_editor(struct line_reader *l)
{
	HistEvent event;

	if (MB_CUR_MAX == 1) /* texts are UTF-8 whatever the environment says */
		setlocale(LC_CTYPE, "C.UTF-8");
	sigemptyset(&l->held);
	for (size_t i = 0; i < N_ENDING; i++)
		sigaddset(&l->held, ending[i]);
	sigaddset(&l->held, SIGTSTP);
	sigaddset(&l->held, SIGWINCH);
	l->held_fd = signalfd(-1, &l->held, SFD_CLOEXEC | SFD_NONBLOCK);
	if (l->held_fd < 0)
		return -errno;
	l->el = el_init("dsctl", stdin, screen(), stderr);
	l->history = history_init();
	if (!l->el || !l->history)
		return -ENOMEM;
	history(l->history, &event, H_SETSIZE, HISTORY_LINES);
	history(l->history, &event, H_SETUNIQUE, 1);
	el_set(l->el, EL_CLIENTDATA, l);
	el_set(l->el, EL_PROMPT, prompt);
	el_set(l->el, EL_EDITOR, "emacs");
	el_set(l->el, EL_HIST, history, l->history);
	el_source(l->el, NULL); /* ~/.editrc: what one is used to */
	el_set(l->el, EL_SIGNAL, 0);
	el_set(l->el, EL_GETCFN, next_character);
	el_wset(l->el, EL_ADDFN, L"dsctl-cut", L"Drop the line", cut);
	el_set(l->el, EL_BIND, "^C", "dsctl-cut", NULL);
	el_set(l->el, EL_BIND, "-a", "^C", "dsctl-cut", NULL);
	return 0;
}

/* One line with its newline, valid until the next. As line_read(). */
static int edited_line(struct line_reader *l, const char **ret, size_t *ret_n)
{
	sigset_t before;
	HistEvent event;
	const char *text;
	int n = 0;

	l->cut = false;
	sigprocmask(SIG_BLOCK, &l->held, &before);
	/* Before the prompt is seen, so that the terminal itself takes no key that comes after it. */
	el_set(l->el, EL_PREP_TERM, 1);
	text = el_gets(l->el, &n);
	sigprocmask(SIG_SETMASK, &before, NULL);
	if (l->cut)
		return -EINTR;
	if (!text || n <= 0) {
		fputc('\n', screen());
		return 0;
	}
	if (text[strspn(text, " \t\n")])
		history(l->history, &event, H_ENTER, text);
	*ret = text;
	*ret_n = strlen(text);
	return 1;
}

/* ---------------------------------------------------------------- as it comes */

/* More of the input behind what is there. Return: 0, -EINTR, -ENOMEM or why reading failed. */
static int read_more(struct line_reader *l)
{
	struct pollfd p[] = {
		{.fd = l->fd, .events = POLLIN},
		{.fd = l->signal_fd, .events = POLLIN},
	};
	ssize_t n;

	if (l->start > 0)
		memmove(l->data, l->data + l->start, l->end - l->start);
	l->end -= l->start;
	l->start = 0;
	if (l->end == l->size) {
		size_t size = l->size ? 2 * l->size : READ_BYTES;
		char *data = realloc(l->data, size);

		if (!data)
			return -ENOMEM;
		l->data = data;
		l->size = size;
	}
	if (poll(p, 2, -1) < 0)
		return errno == EINTR ? 0 : -errno;
	if (p[1].revents && take_interrupt(l))
		return -EINTR;
	if (!p[0].revents)
		return 0;
	n = read(l->fd, l->data + l->end, l->size - l->end);
	if (n < 0)
		return errno == EINTR || errno == EAGAIN ? 0 : -errno;
	l->end += (size_t)n;
	l->ended = n == 0;
	return 0;
}

static int plain_line(struct line_reader *l, const char **ret, size_t *ret_n)
{
	size_t seen = 0;
	int r;

	for (;;) {
		size_t there = l->end - l->start;
		const char *at = there > 0 ? l->data + l->start : NULL;
		const char *newline = there > seen ? memchr(at + seen, '\n', there - seen) : NULL;

		seen = newline ? (size_t)(newline - at) + 1 : there;
		if (newline || (l->ended && seen > 0)) {
			l->start += seen;
			*ret = at;
			*ret_n = seen;
			return 1;
		}
		if (l->ended)
			return 0;
		if (seen >
		    2 * LINE_BYTES_MAX) { /* too long with half of it, and needs no more memory */
			l->start += seen - LINE_BYTES_MAX - 1;
			seen = LINE_BYTES_MAX + 1;
		}
		r = read_more(l);
		if (r < 0)
			return r;
	}
}

/* ---------------------------------------------------------------- messages */

/* Appends n bytes and a NUL. Return: 0, -EMSGSIZE, -ENOMEM. */
static int add_bytes(struct text *message, const char *bytes, size_t n)
{
	char *data;

	if (n > LINE_BYTES_MAX - message->bytes)
		return -EMSGSIZE;
	data = realloc(message->data, message->bytes + n + 1);
	if (!data)
		return -ENOMEM;
	message->data = data;
	memcpy(data + message->bytes, bytes, n);
	message->bytes += n;
	data[message->bytes] = 0;
	return 0;
}

/* Appends a line without its newline, or with one in the place of its backslash. Sets *ret_goes_on. */
static int add_line(struct text *message, const char *line, size_t n, bool *ret_goes_on)
{
	int r;

	if (n > 0 && line[n - 1] == '\n')
		n--;
	*ret_goes_on = n > 0 && line[n - 1] == '\\';
	r = add_bytes(message, line, *ret_goes_on ? n - 1 : n);
	return r == 0 && *ret_goes_on ? add_bytes(message, "\n", 1) : r;
}

int line_read(struct line_reader *l, struct text *ret)
{
	struct text message = {};
	bool too_long = false;
	const char *line;
	size_t n;
	int r;

	l->continued = false;
	do {
		r = l->el ? edited_line(l, &line, &n) : plain_line(l, &line, &n);
		if (r == 0 && l->continued) /* the end of the input ends the message */
			break;
		if (r > 0)
			r = add_line(&message, line, n, &l->continued);
		else if (r == 0)
			r = -ENODATA;
		if (r == -EMSGSIZE) { /* the rest of it is no message of its own */
			too_long = true;
			message.bytes = 0;
			r = 0;
		}
	} while (r == 0 && l->continued);
	if (r == 0 && too_long)
		r = -EMSGSIZE;
	if (r < 0) {
		free(message.data);
		return r == -ENODATA ? 0 : r;
	}
	*ret = message;
	return 1;
}

/* ---------------------------------------------------------------- life */

bool line_reader_edits(const struct line_reader *l)
{
	return l->el != NULL;
}

struct line_reader *line_reader_free(struct line_reader *l)
{
	if (!l)
		return NULL;
	if (l->el)
		el_end(l->el);
	if (l->history)
		history_end(l->history);
	if (l->held_fd >= 0)
		close(l->held_fd);
	free(l->data);
	free(l);
	return NULL;
}

int line_reader_new(struct line_reader **ret, int fd, int signal_fd)
{
	struct line_reader *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return -ENOMEM;
	l->fd = fd;
	l->signal_fd = signal_fd;
	l->held_fd = -EBADF;
	r = isatty(fd) && screen() ? open_editor(l) : 0;
	if (r < 0) {
		line_reader_free(l);
		return r;
	}
	*ret = l;
	return 0;
}
