// A worker that says when its first instruction ran, and then does nothing for ever.
//
// No libc and no loader: what lies between exec and the clock is the kernel's work alone, the same for whoever
// started it.

#include <asm/unistd.h>

#if defined(__x86_64__)
#define FIRST __attribute__((force_align_arg_pointer, noreturn))
static long call(long number, long a, long b, long c, long d) {
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
#define FIRST __attribute__((noreturn))
static long call(long number, long a, long b, long c, long d) {
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}
#else
#error "no system call is written down for this machine"
#endif

FIRST void _start(void) {
    // struct timespec of a 64-bit machine
    struct { long seconds, nanoseconds; } now;
    call(__NR_clock_gettime, 1 /* CLOCK_MONOTONIC */, (long)&now, 0, 0);
    // What xtask reads; far below PIPE_BUF, so one write is one record however many workers write at once.
    struct { unsigned long nanoseconds, pid; } record = {
        (unsigned long)now.seconds * 1000000000ul + (unsigned long)now.nanoseconds,
        (unsigned long)call(__NR_getpid, 0, 0, 0, 0),
    };
    call(__NR_write, 1, (long)&record, sizeof record, 0);
    // pause(), which not every machine has
    for (;;) call(__NR_ppoll, 0, 0, 0, 0);
}
