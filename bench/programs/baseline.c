// The baseline: `baseline N WORKER` runs N workers and replaces each that dies, and that is all.
//
// The least that starts programs and notices their end: vfork and exec, a pidfd, poll, wait. There is
// no policy, no log, no clean-up (the benchmark ends the workers), no environment of the worker's own.

#define _GNU_SOURCE
#include <poll.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

extern char **environ;

static int start(char **argv) {
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
    if (argc != 3) return 2;
    nfds_t count = (nfds_t)atoi(argv[1]);
    struct pollfd *workers = calloc(count, sizeof *workers);
    if (!workers) return 1;
    for (nfds_t i = 0; i < count; i++) workers[i] = (struct pollfd){.fd = start(argv + 2), .events = POLLIN};
    for (;;) {
        int dead = poll(workers, count, -1);
        for (nfds_t i = 0; dead > 0 && i < count; i++) {
            if (!workers[i].revents) continue;
            dead--;
            siginfo_t info;
            if (waitid((idtype_t)P_PIDFD, (id_t)workers[i].fd, &info, WEXITED)) return 1;
            close(workers[i].fd);
            workers[i].fd = start(argv + 2);
        }
    }
}
