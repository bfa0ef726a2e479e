// A worker that listens on a port of the loopback address, says so, and then does nothing for ever.
//
//     listener PORT

#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

int main(int count, char **words) {
    if (count < 2) return 2;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(words[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 511) != 0) return 1;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    // A record as that of worker.c.
    struct { unsigned long nanoseconds, pid; } record = {
        (unsigned long)now.tv_sec * 1000000000ul + (unsigned long)now.tv_nsec,
        (unsigned long)getpid(),
    };
    if (write(1, &record, sizeof record) != sizeof record) return 1;
    for (;;) pause();
}
