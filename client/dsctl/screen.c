/* SPDX-License-Identifier: Apache-2.0 */
/* Lines are put one under another until the terminal's last. Marks tell the states of pages apart also where there
 * is no colour. */
#include "screen.h"

#include <errno.h>
#include <inttypes.h>
#include <ncurses.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "answer.h"
#include "output.h"

#define BAR_CELLS_MAX 60
#define BAR_BESIDE    60 /* columns of what stands beside a bar */
#define LABEL_COLUMN  10

static const char page_marks[PAGE_STATES] = {
	[PAGE_IN_USE] = '#',
	[PAGE_PUBLISHED] = '=',
	[PAGE_CACHED] = '+',
	[PAGE_FREE] = '.',
};

struct screen {
	SCREEN *terminal;
	bool colours;
	int line; /* that is drawn next */
};

int screen_new(struct screen **ret)
{
	struct screen *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	s->terminal = newterm(NULL, stdout, stdin);
	if (!s->terminal || !tigetstr("cup")) { /* no way to move the cursor */
		if (s->terminal) {
			endwin();
			delscreen(s->terminal);
		}
		free(s);
		return -ENOTTY;
	}
	cbreak();
	noecho();
	nodelay(stdscr, TRUE);
	keypad(stdscr, TRUE);
	curs_set(0);
	if (start_color() == OK && use_default_colors() == OK) {
		s->colours = true;
		init_pair(1 + PAGE_IN_USE, COLOR_GREEN, -1);
		init_pair(1 + PAGE_PUBLISHED, COLOR_CYAN, -1);
		init_pair(1 + PAGE_CACHED, COLOR_YELLOW, -1);
		init_pair(1 + PAGE_FREE, -1, -1);
	}
	*ret = s;
	return 0;
}

struct screen *screen_free(struct screen *s)
{
	if (!s)
		return NULL;
	endwin();
	delscreen(s->terminal);
	free(s);
	return NULL;
}

int screen_key(struct screen *s)
{
	int key = getch();

	(void)s;
	return key == ERR ? 0 : key;
}

/* ---------------------------------------------------------------- lines and bars */

void screen_bar(const uint32_t *parts, const char *marks, size_t n_parts, char *ret, size_t n)
{
	uint64_t whole = 0, before = 0;
	size_t at = 0;

	for (size_t i = 0; i < n_parts; i++)
		whole += parts[i];
	for (size_t i = 0; i < n_parts; i++) {
		before += parts[i];
		while (at < n && whole > 0 && at < before * n / whole)
			ret[at++] = marks[i];
	}
	memset(ret + at, ' ', n - at);
	ret[n] = 0;
}

/* The next line; what goes past the right edge is cut off. */
__attribute__((format(printf, 2, 3))) static void put_line(struct screen *s, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	if (s->line >= LINES)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	mvaddnstr(s->line++, 0, text, COLS);
}

static int bar_cells(void)
{
	int n = COLS - LABEL_COLUMN - BAR_BESIDE;

	return n < 10 ? 10 : n < BAR_CELLS_MAX ? n : BAR_CELLS_MAX;
}

/* Each mark in its colour. */
static void put_bar(struct screen *s, const char *label, const char *bar)
{
	mvaddnstr(s->line, 0, label, COLS);
	mvaddch(s->line, LABEL_COLUMN, '[');
	for (const char *p = bar; *p; p++) {
		const char *mark = memchr(page_marks, *p, sizeof(page_marks));
		chtype c = (unsigned char)*p;

		if (s->colours && mark)
			c |= (chtype)COLOR_PAIR(1 + (mark - page_marks));
		addch(c);
	}
	addstr("] ");
}

__attribute__((format(printf, 5, 6))) static void put_bar_line(struct screen *s, const char *label,
							       const uint32_t *parts,
							       size_t n_parts, const char *fmt, ...)
{
	char bar[BAR_CELLS_MAX + 1], text[160];
	va_list ap;

	if (s->line >= LINES)
		return;
	screen_bar(parts, page_marks, n_parts, bar, (size_t)bar_cells());
	put_bar(s, label, bar);
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	addnstr(text, COLS - getcurx(stdscr) > 0 ? COLS - getcurx(stdscr) : 0);
	s->line++;
}

/* A share of 0 to 1 as a bar of its own. */
static void put_share(struct screen *s, const char *label, double share, const char *text)
{
	uint32_t parts[PAGE_STATES] = {};

	parts[PAGE_IN_USE] = (uint32_t)(share * 1000 + 0.5);
	parts[PAGE_FREE] = 1000 - (parts[PAGE_IN_USE] < 1000 ? parts[PAGE_IN_USE] : 1000);
	put_bar_line(s, label, parts, PAGE_STATES, "%3.0f%% %s", share * 100, text);
}

/* ---------------------------------------------------------------- what is shown */

static void draw_daemon(struct screen *s, const struct view *v)
{
	const struct dsc_stats_reply *st = v->stats;
	char up[32];

	duration_text(st->uptime_usec, up);
	put_line(s, "dsd %s, %s, up %s   %u connections   q quits", st->version,
		 state_text(st->state), up, st->connections);
	put_line(s,
		 "%" PRIu64 " requests, %" PRIu64 " failed, %" PRIu64
		 " cancelled   broker %.1f%% of a processor",
		 st->requests_total, st->requests_failed, st->requests_cancelled, v->broker * 100);
}

static void draw_model(struct screen *s, const struct dsc_model_stats *m, const struct rates *r)
{
	uint32_t pages[PAGE_STATES];
	char text[96];

	put_line(s, "%s", "");
	put_line(s, "%s   %u running, %u waiting   %.1f tokens/s   %.1f prompt tokens/s", m->name,
		 m->running, m->waiting, r->generated, r->prompt);
	pool_map(m, pages);
	put_bar_line(s, "  pages", pages, PAGE_STATES,
		     "%u # in use, %u = published, %u + cached, %u free", pages[PAGE_IN_USE],
		     pages[PAGE_PUBLISHED], pages[PAGE_CACHED], pages[PAGE_FREE]);
	if (r->hit_rate >= 0)
		put_share(s, "  hits", r->hit_rate, "of the prompts found in the pool");
	else
		put_line(s, "  hits    no prompt came");
	snprintf(text, sizeof(text), "of the time in steps, %.1f a second of %.1f rows", r->steps,
		 r->rows);
	put_share(s, "  worker", r->worker, text);
}

static void draw_requests(struct screen *s, const struct view *v)
{
	const struct requests *list = v->requests;

	put_line(s, "%s", "");
	attron(A_REVERSE);
	put_line(s, "%8s %8s %8s %-16s %-9s %-12s %8s %8s %8s %10s", "REQUEST", "UID", "PID",
		 "MODEL", "ACTIVITY", "PRIORITY", "PROMPT", "CACHED", "TOKENS", "AGE");
	attroff(A_REVERSE);
	for (size_t i = 0; i < list->n; i++) {
		const struct dsc_request_info *r = &list->items[i];
		char age[32];

		duration_text(r->age_usec, age);
		put_line(s, "%8" PRIu64 " %8u %8u %-16.16s %-9s %-12s %8u %8u %8u %10s", r->request,
			 r->uid, r->pid, r->model, activity_text(r->activity),
			 priority_text(r->priority), r->prompt_tokens, r->cached_tokens,
			 r->completion_tokens, age);
	}
	if (list->n == 0)
		put_line(s, v->all ? "none under way" : "none of yours under way");
}

void screen_draw(struct screen *s, const struct view *v)
{
	erase();
	s->line = 0;
	draw_daemon(s, v);
	for (size_t i = 0; i < v->stats->n_models; i++)
		draw_model(s, v->stats->models[i], &v->rates[i]);
	draw_requests(s, v);
	refresh();
}
