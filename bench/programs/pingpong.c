/* Two processes on one CPU that wake each other through pipes, as `perf bench sched pipe` has it: each message is a
 * context switch. Prints the nanoseconds of a round trip, two switches, over a number of them; then it ends, or pauses for ever
 * where it runs as a worker. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

int main(int argc, char **argv) {
    long rounds = argc > 1 ? atol(argv[1]) : 0;
    int there[2], back[2];
    char byte = 'x';
    cpu_set_t one;

    CPU_ZERO(&one);
    CPU_SET(0, &one);
    if (rounds < 1 || sched_setaffinity(0, sizeof one, &one) || pipe(there) || pipe(back)) return 1;
    pid_t other = fork();
    if (other < 0) return 1;
    if (other == 0) {
        for (long round = 0; round < rounds; round++)
            if (read(there[0], &byte, 1) != 1 || write(back[1], &byte, 1) != 1) return 1;
        return 0;
    }
    int64_t begun = now();
    for (long round = 0; round < rounds; round++)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) return 1;
    printf("%ld\n", (long)((now() - begun) / rounds));
    fflush(stdout);
    waitpid(other, NULL, 0);
    if (argc > 2) pause();
    return 0;
}
