/* SPDX-License-Identifier: Apache-2.0 */
/* dsd: options, configuration, sockets; then the loop. The same binary under systemd (sockets handed
 * over) and in the foreground (--socket). */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <systemd/sd-daemon.h>

#include "base/cleanup.h"
#include "base/config.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/hash.h"
#include "base/io.h"
#include "base/log.h"
#include "broker/server.h"

#define EXIT_CONFIG   2  /* options or configuration */
#define EXIT_INSTANCE 75 /* another dsd holds the lock */

struct options {
	struct config cfg;
	const char *socket, *admin_socket, *state;
	bool fake_worker, check_config;
};

static const char help[] =
	"Usage: dsd [OPTION]...\n"
	"Serve DeepSeek-family models to the processes of this host.\n"
	"\n"
	"  --model PATH[:NAME]          a model directory; may be repeated\n"
	"  --socket PATH                listen here (under systemd: the sockets it hands over)\n"
	"  --admin-socket PATH          default: admin.sock beside --socket\n"
	"  --state DIR                  lock and kept state; made with mode 0700\n"
	"  --fake-worker                a worker without arithmetic, for tests\n"
	"  --config FILE                default: /etc/dsd/dsd.conf, with FILE.d/*.conf\n"
	"  --set SECTION.KEY=VALUE      set one key; may be repeated\n"
	"  --check-config               print every key, its value and meaning, and exit\n"
	"  --help, --version\n"
	"\n"
	"Exit status: 0 stopped as asked, 1 failed, 2 options or configuration, 75 another dsd has the\n"
	"state directory or a socket.\n";

static int parse(struct options *o, int argc, char **argv, struct error *err)
{
	enum {
		OPT_MODEL = 256,
		OPT_SOCKET,
		OPT_ADMIN,
		OPT_STATE,
		OPT_FAKE,
		OPT_CONFIG,
		OPT_SET,
		OPT_CHECK,
		OPT_HELP,
		OPT_VERSION
	};
	static const struct option options[] = {
		{"model", required_argument, NULL, OPT_MODEL},
		{"socket", required_argument, NULL, OPT_SOCKET},
		{"admin-socket", required_argument, NULL, OPT_ADMIN},
		{"state", required_argument, NULL, OPT_STATE},
		{"fake-worker", no_argument, NULL, OPT_FAKE},
		{"config", required_argument, NULL, OPT_CONFIG},
		{"set", required_argument, NULL, OPT_SET},
		{"check-config", no_argument, NULL, OPT_CHECK},
		{"help", no_argument, NULL, OPT_HELP},
		{"version", no_argument, NULL, OPT_VERSION},
		{}};
	const char *config = NULL;
	int c, r;

	/* Twice over: where the configuration is, first, so that the command line has the last word. */
	while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0)
		switch (c) {
		case OPT_CONFIG:
			config = optarg;
			break;
		case OPT_HELP:
			fputs(help, stdout);
			return 1;
		case OPT_VERSION:
			puts("dsd " DSD_VERSION);
			return 1;
		case '?':
			return error_set(err, -EINVAL, "dsd --help lists the options");
		}
	config_init(&o->cfg);
	if (config && access(config, F_OK) < 0)
		return error_set(err, -errno, "--config %.300s: %m", config);
	r = config_load(&o->cfg, config ?: "/etc/dsd/dsd.conf", err);
	optind = 0; /* from the start again */
	while (r == 0 && (c = getopt_long(argc, argv, "", options, NULL)) >= 0)
		switch (c) {
		case OPT_MODEL:
			r = config_add_model(&o->cfg, optarg, err);
			break;
		case OPT_SOCKET:
			o->socket = optarg;
			break;
		case OPT_ADMIN:
			o->admin_socket = optarg;
			break;
		case OPT_STATE:
			o->state = optarg;
			break;
		case OPT_FAKE:
			o->fake_worker = true;
			break;
		case OPT_SET:
			r = config_set(&o->cfg, optarg, err);
			break;
		case OPT_CHECK:
			o->check_config = true;
			break;
		}
	if (r == 0 && optind < argc)
		r = error_set(err, -EINVAL, "\"%.100s\": dsd takes options alone", argv[optind]);
	if (r == 0 && o->fake_worker && o->cfg.n_models == 0)
		r = config_add_model(&o->cfg, "fake", err);
	for (uint32_t i = 0; i < o->cfg.n_models && r == 0; i++)
		if (!o->cfg.models[i].path[0])
			r = error_set(err, -EINVAL,
				      "model.%s.share is set and model.%s.path is not",
				      o->cfg.models[i].name, o->cfg.models[i].name);
	return r;
}

static int make_dir(const char *path, mode_t mode, struct error *err)
{
	struct stat st;

	if (mkdir(path, mode) < 0 && errno != EEXIST)
		return error_set(err, -errno, "making %.300s: %m", path);
	if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode))
		return error_set(err, -ENOTDIR, "%.300s: want a directory", path);
	return 0;
}

/* One dsd for each state directory; the lock goes with the process. Return: the descriptor. */
static int take_lock(const char *state, struct error *err)
{
	_cleanup_(fd_closep) int fd = -EBADF;
	char path[PATH_MAX];
	struct stat st;
	int r = make_dir(state, 0700, err);

	if (r < 0)
		return r;
	if ((size_t)snprintf(path, sizeof(path), "%s/lock", state) >= sizeof(path))
		return error_set(err, -ENAMETOOLONG, "--state %.100s...: too long", state);
	if (stat(state, &st) < 0)
		return error_set(err, -errno, "--state %.300s: %m", state);
	if (st.st_uid != geteuid() || st.st_mode & (S_IWGRP | S_IWOTH))
		return error_set(err, -EBADFD,
				 "--state %.300s: mode %03o of uid %u: want a directory that dsd's "
				 "user alone may write to",
				 state, st.st_mode & 0777, st.st_uid);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return error_set(err, -errno, "%.300s: %m", path);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0)
		return error_set(err, -EBUSY, "another dsd holds %.300s", path);
	return TAKE_FD(fd);
}

/* Whether somebody serves a socket that is there already. A daemon that was killed may seem to answer
 * for a moment, while the kernel takes its ring apart: who listens there must be alive as well. */
static bool answers(const struct sockaddr_un *addr)
{
	_cleanup_(fd_closep) int fd =
		socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct ucred cred;
	socklen_t n = sizeof(cred);

	if (fd < 0)
		return false;
	if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0)
		return errno == EAGAIN; /* its queue is full: busy, and there */
	return (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n) < 0 || kill(cred.pid, 0) == 0 ||
		errno != ESRCH);
}

static int listen_at(const char *path, mode_t mode, struct error *err)
{
	_cleanup_(fd_closep) int fd = -EBADF;
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	mode_t old;
	int r;

	if (strlen(path) >= sizeof(addr.sun_path))
		return error_set(err, -ENAMETOOLONG, "--socket %.120s: want at most %zu bytes",
				 path, sizeof(addr.sun_path) - 1);
	strcpy(addr.sun_path, path);
	if (access(path, F_OK) == 0) {
		struct stat st;

		if (lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode))
			return error_set(err, -EEXIST, "%.120s is there and is no socket", path);
		if (answers(&addr))
			return error_set(err, -EADDRINUSE,
					 "somebody serves %.120s already: want another --socket or "
					 "--admin-socket",
					 path);
		unlink(path); /* left behind by one that died */
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return error_set(err, -errno, "socket: %m");
	old = umask(0777 & ~mode); /* never wider, not for a moment */
	r = bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0 ? -errno : 0;
	umask(old);
	if (r < 0)
		return error_set(err, r, "binding %.120s: %m", path);
	if (listen(fd, 1024) < 0)
		return error_set(err, -errno, "listening at %.120s: %m", path);
	return TAKE_FD(fd);
}

/* Who may connect is what the file says, so a unit that was edited wrongly must not go unnoticed.
 * Return: 0, or -EBADFD with a sentence. */
static int check_socket(int fd, bool admin, struct error *err)
{
	const mode_t want = admin ? 0600 : 0660;
	struct sockaddr_un addr = {};
	socklen_t n = sizeof(addr);
	struct stat st;

	if (getsockname(fd, (struct sockaddr *)&addr, &n) < 0)
		return error_set(err, -EBADFD, "a socket of systemd: %m");
	if (!addr.sun_path[0])
		return error_set(err, -EBADFD, "a socket without a file: want one with mode %04o",
				 want);
	if (stat(addr.sun_path, &st) < 0)
		return error_set(err, -EBADFD, "%.108s: %m", addr.sun_path);
	if (st.st_mode & 0777 & ~want)
		return error_set(err, -EBADFD, "%.108s has mode %04o: want %04o (SocketMode=)",
				 addr.sun_path, st.st_mode & 0777, want);
	if (st.st_uid != 0 && st.st_uid != geteuid())
		return error_set(err, -EBADFD, "%.108s belongs to uid %u: want root (SocketUser=)",
				 addr.sun_path, st.st_uid);
	return 0;
}

/* What systemd hands over: sockets, which is which says FileDescriptorName=, and what we had it keep. */
static int take_sockets(struct server *s, struct error *err)
{
	char **names = NULL;
	int n = sd_listen_fds_with_names(0, &names), r = 0;

	if (n < 0)
		return error_set(err, n, "sd_listen_fds: %m");
	for (int i = 0; i < n; i++) {
		int fd = SD_LISTEN_FDS_START + i;

		bool admin = strcmp(names[i], "dsd-admin") == 0;

		if (store_is_name(names[i])) {
			store_add(&s->store, names[i], fd);
		} else if (r == 0 && sd_is_socket_unix(fd, SOCK_STREAM, 1, NULL, 0) > 0) {
			fcntl(fd, F_SETFD, FD_CLOEXEC);
			r = check_socket(fd, admin, err);
			r = r ?: server_listen(s, fd, admin, false, err);
		}
		free(names[i]);
	}
	free(names);
	return r;
}

/* admin.sock beside the socket, unless it was named. */
static int admin_path(const struct options *o, char ret[PATH_MAX])
{
	const char *slash = strrchr(o->socket, '/');
	int dir = slash ? (int)(slash - o->socket) + 1 : 0;

	if (o->admin_socket)
		return snprintf(ret, PATH_MAX, "%s", o->admin_socket);
	return snprintf(ret, PATH_MAX, "%.*sadmin.sock", dir, o->socket);
}

static int open_sockets(struct server *s, const struct options *o, struct error *err)
{
	char admin[PATH_MAX];
	int fd, r = take_sockets(s, err);

	if (r < 0 || s->n_listeners > 1)
		return r;
	if (s->n_listeners == 1)
		return s->listeners[0].admin
			       ? error_set(err, -EINVAL,
					   "systemd handed over the admin socket alone")
			       : 0;
	if (!o->socket)
		return error_set(
			err, -EINVAL,
			"no socket: want --socket PATH, or sockets handed over by systemd");
	admin_path(o, admin);
	if (strcmp(admin, o->socket) == 0)
		return error_set(err, -EBADFD,
				 "--socket and --admin-socket are both %.120s: want two", admin);
	fd = listen_at(o->socket, 0660, err);
	if (fd < 0)
		return fd;
	r = server_listen(s, fd, false, true, err);
	if (r < 0)
		return r;
	fd = listen_at(admin, 0600, err);
	if (fd < 0)
		return fd;
	return server_listen(s, fd, true, true, err);
}

/* $DSD_WORKER, beside dsd, or where packages put it. */
static const char *find_worker(char buf[PATH_MAX])
{
	const char *env = secure_getenv("DSD_WORKER");
	ssize_t n;
	char *slash;

	if (env && env[0])
		return env;
	n = readlink("/proc/self/exe", buf, PATH_MAX - 32);
	if (n > 0) {
		buf[n] = 0;
		slash = strrchr(buf, '/');
		if (slash) {
			strcpy(slash + 1, "dsd-worker");
			if (access(buf, X_OK) == 0)
				return buf;
		}
	}
	return DSD_LIBEXECDIR "/dsd-worker";
}

/* Prompts are in this memory: no core files, no debugger of the same user, and as many descriptors as
 * the system lets us have. */
static void harden(void)
{
	struct rlimit limit;

	prctl(PR_SET_DUMPABLE, 0);
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	umask(0077);
}

static int run(const struct options *o, struct error *err)
{
	_cleanup_(fd_closep) int lock = -EBADF;
	char worker[PATH_MAX];
	struct error unwatched = {}, unkept = {};
	struct io *io = NULL;
	struct server s;
	int r;

	if (o->state) {
		lock = take_lock(o->state, err);
		if (lock < 0)
			return lock;
	}
	r = io_new(&io, (enum io_backend)o->cfg.io_backend, err);
	if (r < 0)
		return r;
	r = server_init(&s, io, &o->cfg, find_worker(worker), o->fake_worker, err);
	if (r == 0 && o->state) {
		s.state_fd = open(o->state, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (s.state_fd < 0)
			r = error_set(err, -errno, "--state %.300s: %m", o->state);
	}
	if (r == 0 && packed_open(&s, &unkept) < 0)
		log_warning("packed weights are not kept: %s", error_text(&unkept, 0));
	if (r == 0)
		r = open_sockets(&s, o, err);
	if (r == 0 && pressure_watch(&s, &unwatched) < 0)
		log_info("memory pressure is not watched: %s", error_text(&unwatched, 0));
	if (r == 0)
		r = server_run(&s, err);
	server_done(&s);
	io_free(io);
	return r;
}

int main(int argc, char **argv)
{
	struct options o = {};
	struct error err = {};
	int r;

	log_init("dsd", LOG_INFO);
	r = parse(&o, argc, argv, &err);
	if (r > 0)
		return 0;
	if (r == 0)
		r = fault_init(secure_getenv("DSD_FAULT"), &err);
	if (r < 0) {
		log_error("%s", error_text(&err, r));
		return EXIT_CONFIG;
	}
	log_init("dsd", (int)o.cfg.log_level);
	if (o.check_config) {
		config_print(&o.cfg, stdout);
		return 0;
	}
	harden();
	r = hash_init();
	if (r == 0)
		r = run(&o, &err);
	if (r < 0) {
		log_error("%s", error_text(&err, r));
		if (r == -EBADFD)
			return EXIT_CONFIG;
		return r == -EBUSY || r == -EADDRINUSE ? EXIT_INSTANCE : 1;
	}
	return 0;
}
