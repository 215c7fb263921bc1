/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of dsctl chat: what a conversation holds, and how messages are cut out of standard input. The editor
 * itself is tested at a pseudo-terminal, in tests/daemon/test_chat.py. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cmocka.h>

#include "conversation.h"
#include "line.h"

/* ---------------------------------------------------------------- the conversation */

static void add(struct conversation *c, enum dsc_role role, const char *text)
{
	assert_int_equal(conversation_add(c, role, text, strlen(text)), 0);
}

static void expect(const struct conversation *c, size_t i, enum dsc_role role, const char *text)
{
	assert_true(i < c->n);
	assert_int_equal(c->messages[i].role, role);
	assert_int_equal(c->messages[i].text_bytes, strlen(text));
	assert_memory_equal(c->messages[i].text, text, strlen(text));
}

static void conversation_keeps_the_system_message_first(void **state)
{
	struct conversation c = CONVERSATION_NULL;

	(void)state;
	add(&c, DSC_ROLE_USER, "one");
	add(&c, DSC_ROLE_ASSISTANT, "two");
	assert_int_equal(conversation_set_system(&c, "sys", 3), 0);
	assert_int_equal(c.n, 3);
	expect(&c, 0, DSC_ROLE_SYSTEM, "sys");
	expect(&c, 1, DSC_ROLE_USER, "one");
	expect(&c, 2, DSC_ROLE_ASSISTANT, "two");
	assert_int_equal(conversation_set_system(&c, "other", 5), 0);
	assert_int_equal(c.n, 3);
	expect(&c, 0, DSC_ROLE_SYSTEM, "other");
	expect(&c, 2, DSC_ROLE_ASSISTANT, "two");
	assert_int_equal(conversation_set_system(&c, "", 0), 0);
	assert_int_equal(c.n, 2);
	expect(&c, 0, DSC_ROLE_USER, "one");
	assert_int_equal(conversation_set_system(&c, "", 0), 0);
	assert_int_equal(c.n, 2);
	conversation_done(&c);
}

static void conversation_clear_forgets_all_but_the_system_message(void **state)
{
	struct conversation c = CONVERSATION_NULL;

	(void)state;
	conversation_clear(&c);
	assert_int_equal(c.n, 0);
	add(&c, DSC_ROLE_USER, "one");
	conversation_clear(&c);
	assert_int_equal(c.n, 0);
	assert_int_equal(conversation_set_system(&c, "sys", 3), 0);
	add(&c, DSC_ROLE_USER, "one");
	conversation_clear(&c);
	assert_int_equal(c.n, 1);
	expect(&c, 0, DSC_ROLE_SYSTEM, "sys");
	conversation_done(&c);
}

static void conversation_finds_the_last_question(void **state)
{
	struct conversation c = CONVERSATION_NULL;

	(void)state;
	assert_int_equal(conversation_last(&c), 0);
	assert_int_equal(conversation_set_system(&c, "sys", 3), 0);
	assert_int_equal(conversation_last(&c), c.n);
	for (size_t i = 0; i < 40; i++) { /* past what the array began with */
		add(&c, DSC_ROLE_USER, "q");
		assert_int_equal(conversation_last(&c), 1 + 2 * i);
		add(&c, DSC_ROLE_ASSISTANT, "");
		assert_int_equal(conversation_last(&c), 1 + 2 * i);
	}
	conversation_truncate(&c, conversation_last(&c));
	assert_int_equal(c.n, 79);
	assert_int_equal(conversation_last(&c), 77);
	conversation_truncate(&c, 100);
	assert_int_equal(c.n, 79);
	conversation_done(&c);
}

/* ---------------------------------------------------------------- messages on a pipe */

static struct line_reader *reader_of(const void *bytes, size_t n)
{
	struct line_reader *l;
	int fd = memfd_create("input", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, n), n);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	assert_int_equal(line_reader_new(&l, fd, -1), 0);
	assert_false(line_reader_edits(l));
	return l;
}

static void message(struct line_reader *l, const void *want, size_t n)
{
	struct text t;

	assert_int_equal(line_read(l, &t), 1);
	assert_int_equal(t.bytes, n);
	assert_memory_equal(t.data, want, n);
	assert_int_equal(t.data[n], 0);
	free(t.data);
}

static void messages_are_lines_and_the_last_needs_no_newline(void **state)
{
	static const char input[] = "one\n\ntwo \xff\0x\nthree";
	struct line_reader *l = reader_of(input, sizeof(input) - 1);
	struct text t;

	(void)state;
	message(l, "one", 3);
	message(l, "", 0);
	message(l, "two \xff\0x", 7);
	message(l, "three", 5);
	assert_int_equal(line_read(l, &t), 0);
	assert_int_equal(line_read(l, &t), 0);
	line_reader_free(l);
}

static void a_backslash_at_the_end_joins_lines(void **state)
{
	static const char input[] = "a\\\nb\\\n\\\n\nc\\d\nlast\\";
	struct line_reader *l = reader_of(input, sizeof(input) - 1);
	struct text t;

	(void)state;
	message(l, "a\nb\n\n", 5);
	message(l, "c\\d", 3);
	message(l, "last\n", 5);
	assert_int_equal(line_read(l, &t), 0);
	line_reader_free(l);
}

static void an_empty_input_has_no_message(void **state)
{
	struct line_reader *l = reader_of("", 0);
	struct text t;

	(void)state;
	assert_int_equal(line_read(l, &t), 0);
	line_reader_free(l);
}

/* Lines of n - 1, n, n + 1 and 5n bytes, where n is the most; and one that is too long only by its second line. */
static void a_message_past_the_limit_is_left_out_whole(void **state)
{
	size_t n = LINE_BYTES_MAX, bytes = 10 * n, at = 0;
	char *input = malloc(bytes);
	struct line_reader *l;
	struct text t;

	(void)state;
	assert_non_null(input);
	memset(input, 'x', bytes);
	input[at += n - 1] = '\n';
	input[at += n + 1] = '\n';
	input[at += n + 2] = '\n';
	input[at += 5 * n + 1] = '\n';
	input[at += n / 2] = '\n';
	input[at - 1] = '\\';
	input[at += n / 2 + 9] = '\n';
	input[at + 1] = 'y';
	input[at + 2] = '\n';
	l = reader_of(input, at + 3);
	message(l, input, n - 1);
	message(l, input + n, n);
	assert_int_equal(line_read(l, &t), -EMSGSIZE);
	assert_int_equal(line_read(l, &t), -EMSGSIZE);
	assert_int_equal(line_read(l, &t), -EMSGSIZE);
	message(l, "y", 1);
	assert_int_equal(line_read(l, &t), 0);
	line_reader_free(l);
	free(input);
}

static void ctrl_c_ends_the_wait_for_a_line(void **state)
{
	struct line_reader *l;
	int pipes[2], signal_fd;
	sigset_t set;
	struct text t;

	(void)state;
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	assert_int_equal(sigprocmask(SIG_BLOCK, &set, NULL), 0);
	signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	assert_int_equal(line_reader_new(&l, pipes[0], signal_fd), 0);
	raise(SIGINT);
	assert_int_equal(line_read(l, &t), -EINTR);
	assert_int_equal(write(pipes[1], "go\\\n", 4), 4);
	raise(SIGINT); /* in the middle of a message */
	assert_int_equal(line_read(l, &t), -EINTR);
	assert_int_equal(write(pipes[1], "next\n", 5), 5);
	close(pipes[1]);
	message(l, "go\nnext", 7);
	line_reader_free(l);
	close(pipes[0]);
	close(signal_fd);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(conversation_keeps_the_system_message_first),
		cmocka_unit_test(conversation_clear_forgets_all_but_the_system_message),
		cmocka_unit_test(conversation_finds_the_last_question),
		cmocka_unit_test(messages_are_lines_and_the_last_needs_no_newline),
		cmocka_unit_test(a_backslash_at_the_end_joins_lines),
		cmocka_unit_test(an_empty_input_has_no_message),
		cmocka_unit_test(a_message_past_the_limit_is_left_out_whole),
		cmocka_unit_test(ctrl_c_ends_the_wait_for_a_line),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
