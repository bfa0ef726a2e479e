// The baseline: `baseline N WORKER` runs N workers and replaces each that dies, and that is all.
//
// The least that starts programs and notices their end: vfork and exec, a pidfd, poll, wait. There is
// no policy, no log, no clean-up (the benchmark ends the workers), no environment of the worker's own.
//
// `baseline N WORKER filter` gives each worker a seccomp filter whose listener it keeps, and a descriptor table of its own: what
// sharing addresses takes at least.

#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

extern char **environ;

static int filters;
static volatile int listener;

// As the supervisor's: most calls are outside of a range of numbers, which the kernel is told first.
static struct sock_filter program[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, SYS_listen + 1, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_bind, 1, 0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_listen, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
};

static int filtered(void *argv) {
    struct sock_fprog filter = {.len = sizeof program / sizeof *program, .filter = program};
    listener = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
    if (listener < 0 || syscall(SYS_close_range, 3, ~0U, 2 /* CLOSE_RANGE_UNSHARE */)) _exit(127);
    execve(((char **)argv)[0], argv, environ);
    _exit(127);
}

static int start(char **argv) {
    static char stack[64 * 1024] __attribute__((aligned(16)));
    if (filters) {
        int fd = -1;
        int flags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_PIDFD | SIGCHLD;
        if (clone(filtered, stack + sizeof stack, flags, argv, &fd) < 0) exit(1);
        return fd;
    }
    pid_t pid = vfork();
    if (pid == 0) {
        execve(argv[0], argv, environ);
        _exit(127);
    }
    if (pid < 0) exit(1);
    // Close-on-exec by itself.
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0) exit(1);
    return fd;
}

int main(int argc, char **argv) {
    if (argc != 3 && argc != 4) return 2;
    filters = argc == 4;
    argv[3] = NULL;
    nfds_t count = (nfds_t)atoi(argv[1]);
    struct pollfd *workers = calloc(count, sizeof *workers);
    int *listeners = calloc(count, sizeof *listeners);
    if (!workers || !listeners) return 1;
    for (nfds_t i = 0; i < count; i++) {
        workers[i] = (struct pollfd){.fd = start(argv + 2), .events = POLLIN};
        listeners[i] = listener;
    }
    for (;;) {
        int dead = poll(workers, count, -1);
        for (nfds_t i = 0; dead > 0 && i < count; i++) {
            if (!workers[i].revents) continue;
            dead--;
            siginfo_t info;
            if (waitid((idtype_t)P_PIDFD, (id_t)workers[i].fd, &info, WEXITED)) return 1;
            close(workers[i].fd);
            if (filters) close(listeners[i]);
            workers[i].fd = start(argv + 2);
            listeners[i] = listener;
        }
    }
}
