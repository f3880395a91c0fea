/* Makes system calls on some files fail with EIO, as a failing disk does: for LD_PRELOAD.
 *
 * The file named by DFS_FAULTS has lines "CALL PART": CALL is read, write or sync, PART is a part of
 * the path of the files it fails for. It is read at each call, so faults come and go while the
 * program runs. No such file: no fault.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int fails(int fd, const char *call)
{
    char link[64], path[4096], faults[4096];
    const char *name = getenv("DFS_FAULTS");
    int saved = errno, result = 0, list;
    ssize_t size;

    if (name == NULL || (list = syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC)) < 0) {
        errno = saved;
        return 0;
    }
    size = syscall(SYS_read, list, faults, sizeof faults - 1);
    syscall(SYS_close, list);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (size > 0 && length > 0) {
        char *rest = NULL;
        faults[size] = path[length] = 0;
        for (char *line = strtok_r(faults, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
            size_t word = strlen(call);
            if (!strncmp(line, call, word) && line[word] == ' ' && strstr(path, line + word + 1))
                result = 1;
        }
    }
    errno = saved;
    return result;
}

#define WRAP(call, type, name, parameters, arguments)                          \
    type name parameters                                                       \
    {                                                                          \
        static type(*real) parameters;                                         \
        if (real == NULL)                                                      \
            real = (type(*) parameters)dlsym(RTLD_NEXT, #name);                \
        if (fails(fd, call)) {                                                 \
            errno = EIO;                                                       \
            return -1;                                                         \
        }                                                                      \
        return real arguments;                                                 \
    }

typedef const struct iovec *vector;

WRAP("read", ssize_t, pread64, (int fd, void *data, size_t size, off_t at), (fd, data, size, at))
WRAP("read", ssize_t, preadv64, (int fd, vector to, int n, off_t at), (fd, to, n, at))
WRAP("read", ssize_t, preadv64v2, (int fd, vector to, int n, off_t at, int how), (fd, to, n, at, how))
WRAP("write", ssize_t, pwrite64, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
WRAP("write", ssize_t, pwritev64, (int fd, vector of, int n, off_t at), (fd, of, n, at))
WRAP("write", ssize_t, pwritev64v2, (int fd, vector of, int n, off_t at, int how), (fd, of, n, at, how))
WRAP("sync", int, fdatasync, (int fd), (fd))
WRAP("sync", int, fsync, (int fd), (fd))
