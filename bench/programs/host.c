/* What parts of a host's work cost: a round trip of two processes on one CPU, which wake each other through pipes (two context
 * switches, as `perf bench sched pipe` has it), a signal to a process that handles it, and a fork with the child's exit.
 * Prints the nanoseconds of each: the median of many short rounds, which take turns.
 *
 * All of it runs on one CPU, before ordinary programs if that is allowed (SCHED_FIFO): otherwise what else the host does is in
 * the numbers. Between two rounds the CPU is left to others. */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 201, TRIPS = 200, SIGNALS = 1000, FORKS = 20 };

static int there[2], back[2];

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static void ignore(int number) { (void)number; }

static int compare(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int trip(void) {
    char byte = 'x';
    return write(there[1], &byte, 1) == 1 && read(back[0], &byte, 1) == 1;
}

static int signalled(void) { return kill(getpid(), SIGUSR1) == 0; }

static int forked(void) {
    pid_t child = fork();
    if (child == 0) _exit(0);
    return child > 0 && waitpid(child, NULL, 0) == child;
}

static int64_t timed(int (*part)(void), int count) {
    int64_t begun = now();
    for (int i = 0; i < count; i++)
        if (!part()) exit(1);
    return (now() - begun) / count;
}

int main(void) {
    static int64_t took[3][ROUNDS];
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    if (sched_setaffinity(0, sizeof one, &one) || pipe(there) || pipe(back)) return 1;
    /* Not for everybody. */
    (void)!sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1});
    signal(SIGUSR1, ignore);
    pid_t other = fork();
    if (other < 0) return 1;
    if (other == 0) {
        char byte;
        close(there[1]);
        while (read(there[0], &byte, 1) == 1)
            if (write(back[1], &byte, 1) != 1) return 1;
        return 0;
    }
    for (int round = 0; round < ROUNDS; round++) {
        took[0][round] = timed(trip, TRIPS);
        took[1][round] = timed(signalled, SIGNALS);
        took[2][round] = timed(forked, FORKS);
        usleep(2000);
    }
    for (int part = 0; part < 3; part++) {
        qsort(took[part], ROUNDS, sizeof took[part][0], compare);
        printf("%ld\n", (long)took[part][ROUNDS / 2]);
    }
    close(there[1]);
    waitpid(other, NULL, 0);
    return 0;
}
