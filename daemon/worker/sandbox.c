/* SPDX-License-Identifier: Apache-2.0 */
/* The filters are two tables: what is allowed, by stage, and what no worker ever does. The second
 * filter is laid over the first, and the kernel takes the stricter answer of the two, so that the
 * second need not name again what kills. */
#include "worker/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/landlock.h>
#include <seccomp.h>

#include "base/cleanup.h"
#include "base/error.h"

/* The sanitizers read /proc, and the leak checker starts and traces a process of its own. */
#if defined(__SANITIZE_ADDRESS__)
#define HAVE_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAVE_SANITIZER 1
#endif
#endif
#ifndef HAVE_SANITIZER
#define HAVE_SANITIZER 0
#endif

/* struct landlock_ruleset_attr of ABI 6: the header of the build machine may be older. */
struct ruleset {
	uint64_t access_fs, access_net, scoped;
};

static const struct {
	uint8_t since, n_fs, n_net, n_scoped; /* bits that the ABI knows */
	uint8_t bytes;                        /* of struct ruleset */
} abis[] = {
	{1, 13, 0, 0, 8},  {2, 14, 0, 0, 8}, /* linking across directories */
	{3, 15, 0, 0, 8},                    /* truncating */
	{4, 15, 2, 0, 16},                   /* binding and connecting TCP */
	{5, 16, 2, 0, 16},                   /* ioctl on devices */
	{6, 16, 2, 2, 24},                   /* abstract sockets, signals */
};

static int no_new_privs(struct error *err)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return error_set(err, -errno, "prctl NO_NEW_PRIVS: %m");
	return 0;
}

static uint64_t low_bits(unsigned n)
{
	return (UINT64_C(1) << n) - 1;
}

int sandbox_close_paths(struct error *err)
{
	_cleanup_(fd_closep) int fd = -EBADF;
	struct ruleset rules;
	size_t i = N_ELEMENTS(abis) - 1;
	long abi;
	int r;

	if (HAVE_SANITIZER)
		return error_set(err, -EOPNOTSUPP, "no Landlock: the sanitizers open /proc");
	r = no_new_privs(err);
	if (r < 0)
		return r;
	abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
	if (abi < 1)
		return error_set(err, abi < 0 ? -errno : -EOPNOTSUPP, "no Landlock: %m");
	while (i > 0 && abis[i].since > abi)
		i--;
	rules = (struct ruleset){.access_fs = low_bits(abis[i].n_fs),
				 .access_net = low_bits(abis[i].n_net),
				 .scoped = low_bits(abis[i].n_scoped)};
	fd = (int)syscall(SYS_landlock_create_ruleset, &rules, (size_t)abis[i].bytes, 0);
	if (fd < 0)
		return error_set(err, -errno, "a Landlock ruleset of ABI %ld: %m", abi);
	if (syscall(SYS_landlock_restrict_self, fd, 0) < 0)
		return error_set(err, -errno, "entering the Landlock ruleset: %m");
	return 0;
}

#define LOADING BIT(SANDBOX_LOADING)
#define SERVING BIT(SANDBOX_SERVING)

static const struct {
	int call;
	unsigned stages;
} allowed[] = {
	/* Descriptors that were given: files, the packed store, memfds, the channel. */
	{SCMP_SYS(read), LOADING | SERVING},
	{SCMP_SYS(write), LOADING | SERVING},
	{SCMP_SYS(close), LOADING | SERVING},
	{SCMP_SYS(poll), LOADING | SERVING},
	{SCMP_SYS(ppoll), LOADING | SERVING},
	{SCMP_SYS(sendmsg), LOADING | SERVING}, /* FAILED and why */
	{SCMP_SYS(recvmsg), LOADING},
	{SCMP_SYS(readv), LOADING},
	{SCMP_SYS(pread64), LOADING},
	{SCMP_SYS(preadv), LOADING},
	{SCMP_SYS(writev), LOADING},
	{SCMP_SYS(pwrite64), LOADING},
	{SCMP_SYS(pwritev), LOADING},
	{SCMP_SYS(lseek), LOADING},
	{SCMP_SYS(fstat), LOADING},
	{SCMP_SYS(fcntl), LOADING},
	{SCMP_SYS(ftruncate), LOADING},
	{SCMP_SYS(fallocate), LOADING},
	{SCMP_SYS(fadvise64), LOADING},
	{SCMP_SYS(fsync), LOADING},
	{SCMP_SYS(fdatasync), LOADING},
	{SCMP_SYS(memfd_create), LOADING},
	/* Memory; mmap and mprotect are below. */
	{SCMP_SYS(brk), LOADING | SERVING},
	{SCMP_SYS(munmap), LOADING | SERVING},
	{SCMP_SYS(mremap), LOADING | SERVING},
	{SCMP_SYS(madvise), LOADING | SERVING},
	{SCMP_SYS(msync), LOADING}, /* the packed store, to its disk */
	{SCMP_SYS(mlock), LOADING},
	{SCMP_SYS(mlock2), LOADING},
	{SCMP_SYS(mbind), LOADING},
	{SCMP_SYS(set_mempolicy), LOADING},
	{SCMP_SYS(get_mempolicy), LOADING},
	/* Threads and time; clone is below. */
	{SCMP_SYS(futex), LOADING | SERVING},
	{SCMP_SYS(sched_yield), LOADING | SERVING},
	{SCMP_SYS(sched_getaffinity), LOADING | SERVING},
	{SCMP_SYS(getpid), LOADING | SERVING},
	{SCMP_SYS(gettid), LOADING | SERVING},
	{SCMP_SYS(getcpu), LOADING | SERVING},
	{SCMP_SYS(clock_gettime), LOADING | SERVING},
	{SCMP_SYS(gettimeofday), LOADING | SERVING},
	{SCMP_SYS(nanosleep), LOADING | SERVING},
	{SCMP_SYS(clock_nanosleep), LOADING | SERVING},
	{SCMP_SYS(sched_setaffinity), LOADING},
	/* What a thread says before it runs; it may be late and find the second filter in place. */
	{SCMP_SYS(set_robust_list), LOADING | SERVING},
	{SCMP_SYS(rseq), LOADING | SERVING},
	{SCMP_SYS(membarrier), LOADING},
	{SCMP_SYS(sysinfo), LOADING},
	{SCMP_SYS(uname), LOADING},
	{SCMP_SYS(getrandom), LOADING | SERVING},
	{SCMP_SYS(seccomp), LOADING}, /* the second filter */
	/* Signals and the end. */
	{SCMP_SYS(rt_sigaction), LOADING | SERVING},
	{SCMP_SYS(rt_sigprocmask), LOADING | SERVING},
	{SCMP_SYS(rt_sigreturn), LOADING | SERVING},
	{SCMP_SYS(sigaltstack), LOADING | SERVING},
	{SCMP_SYS(restart_syscall), LOADING | SERVING},
	{SCMP_SYS(exit), LOADING | SERVING},
	{SCMP_SYS(exit_group), LOADING | SERVING},
};

/* No library of ours tries any of these in passing: who asks for one is not the worker any more. */
static const int never[] = {
	SCMP_SYS(execve),
	SCMP_SYS(execveat),
	SCMP_SYS(fork),
	SCMP_SYS(vfork),
	SCMP_SYS(ptrace),
	SCMP_SYS(process_vm_readv),
	SCMP_SYS(process_vm_writev),
	SCMP_SYS(pidfd_getfd),
	SCMP_SYS(socket),
	SCMP_SYS(socketpair),
	SCMP_SYS(connect),
	SCMP_SYS(bind),
	SCMP_SYS(listen),
	SCMP_SYS(accept),
	SCMP_SYS(accept4),
	SCMP_SYS(open_by_handle_at),
	SCMP_SYS(mount),
	SCMP_SYS(umount2),
	SCMP_SYS(pivot_root),
	SCMP_SYS(chroot),
	SCMP_SYS(unshare),
	SCMP_SYS(setns),
	SCMP_SYS(bpf),
	SCMP_SYS(perf_event_open),
	SCMP_SYS(userfaultfd),
	SCMP_SYS(io_uring_setup),
	SCMP_SYS(keyctl),
	SCMP_SYS(add_key),
	SCMP_SYS(request_key),
};

/* Calls that depend on an argument. */
static int add_conditions(scmp_filter_ctx f, enum sandbox_stage stage)
{
	/* No memory that can be executed: nothing is loaded or compiled after this. */
	int r = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
				 SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	r = r
		    ?: seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
					SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	/* abort() raises a signal in the caller; no other process is to get one. */
	r = r
		    ?: seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1,
					SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)getpid()));
	/* fstat() of glibc 2.33 to 2.38. */
	r = r
		    ?: seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(newfstatat), 1,
					SCMP_A3(SCMP_CMP_EQ, AT_EMPTY_PATH));
	if (r < 0 || stage != SANDBOX_LOADING)
		return r;
	/* Threads, not processes. The flags of clone3 are out of a filter's sight: without it libc
	 * falls back to clone. */
	r = seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
			     SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
	r = r
		    ?: seccomp_rule_add(f, SCMP_ACT_KILL_PROCESS, SCMP_SYS(clone), 1,
					SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, 0));
	r = r ?: seccomp_rule_add(f, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
	for (size_t i = 0; i < N_ELEMENTS(never) && r == 0; i++)
		r = seccomp_rule_add(f, SCMP_ACT_KILL_PROCESS, never[i], 0);
	return r;
}

static int build_filter(scmp_filter_ctx f, enum sandbox_stage stage)
{
	int r = seccomp_attr_set(f, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);

	r = r ?: seccomp_attr_set(f, SCMP_FLTATR_API_SYSRAWRC, 1); /* the kernel's own errno */
	r = r ?: seccomp_attr_set(f, SCMP_FLTATR_CTL_NNP, 0);      /* set already */
	r = r ?: seccomp_attr_set(f, SCMP_FLTATR_CTL_TSYNC, stage == SANDBOX_SERVING);
	r = r ?: seccomp_attr_set(f, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* a tree, not a list */
	for (size_t i = 0; i < N_ELEMENTS(allowed) && r == 0; i++)
		if (allowed[i].stages & BIT(stage))
			r = seccomp_rule_add(f, SCMP_ACT_ALLOW, allowed[i].call, 0);
	return r ?: add_conditions(f, stage);
}

int sandbox_set_calls(enum sandbox_stage stage, struct error *err)
{
	scmp_filter_ctx f;
	int r;

	if (HAVE_SANITIZER)
		return error_set(err, -EOPNOTSUPP, "no seccomp: the sanitizers open /proc");
	r = stage == SANDBOX_LOADING ? no_new_privs(err) : 0;
	if (r < 0)
		return r;
	f = seccomp_init(SCMP_ACT_ERRNO(EPERM));
	if (!f)
		return -ENOMEM;
	r = build_filter(f, stage);
	r = r ?: seccomp_load(f);
	seccomp_release(f);
	if (r == -EINVAL) /* what a kernel built without filters answers */
		r = -EOPNOTSUPP;
	return r < 0 ? error_set(err, r, "a seccomp filter: %s", strerror(-r)) : 0;
}
