/* Makes file operations below one folder fail, or kills the process at one of them.
 *
 * Built as a shared library and put in front of libc with LD_PRELOAD by tools/maintenance/torture.py, so
 * that every writer is met: Python, and the C++ of the libraries that write checkpoints.
 *
 *   FAULT_PREFIX  the folder; operations elsewhere are left alone and not counted
 *   FAULT_KIND    count    nothing fails
 *                 full     ENOSPC from operation FAULT_AT on, for what takes room
 *                 half     as full, but the first write writes half of its bytes
 *                 denied   EACCES from operation FAULT_AT on, for what changes a folder
 *                 broken   EIO once
 *                 kill     SIGKILL in front of the operation
 *                 torn     SIGKILL after half of the write
 *   FAULT_AT      number of the operation, from 1
 *   FAULT_LOG     file to which each operation is appended as a line: number, name, path
 *
 * fault_arm(prefix, kind, at) sets the same from inside a process, fault_count() is the number of
 * operations since.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { OFF, COUNT, FULL, HALF, DENIED, BROKEN, KILL, TORN };
enum operation { WRITE, CREATE, MAKE, MOVE, REMOVE, SYNC };
static const char *const NAMES[] = {"write", "create", "mkdir", "rename", "remove", "sync"};

static char prefix[PATH_MAX];
static size_t prefix_length;
static enum kind kind;
static long at, count;
static int log_fd = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static enum kind parse(const char *word) {
  static const char *const words[] = {"off", "count", "full", "half", "denied", "broken", "kill", "torn"};
  for (int i = 0; word && i < 8; i++)
    if (!strcmp(word, words[i])) return (enum kind)i;
  return OFF;
}

void fault_arm(const char *folder, const char *word, long number) {
  pthread_mutex_lock(&lock);
  snprintf(prefix, sizeof prefix, "%s", folder);
  prefix_length = strlen(prefix);
  kind = prefix_length ? parse(word) : OFF;
  at = number;
  count = 0;
  pthread_mutex_unlock(&lock);
}

long fault_count(void) { return count; }

#define REAL(type, name, ...) ((type (*)(__VA_ARGS__))real(#name))
static void *real(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (!found) abort();
  return found;
}

__attribute__((constructor)) static void start(void) {
  const char *folder = getenv("FAULT_PREFIX"), *number = getenv("FAULT_AT");
  const char *log = getenv("FAULT_LOG");
  if (log) log_fd = REAL(int, open, const char *, int, ...)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (folder) fault_arm(folder, getenv("FAULT_KIND"), number ? atol(number) : 0);
}

static int inside(const char *path) {
  return !strncmp(path, prefix, prefix_length) &&
         (path[prefix_length] == '/' || path[prefix_length] == 0);
}

/* Whether a path, relative to a directory handle, lies below the prefix; fills `full`. */
static int ours(int directory, const char *path, char *full) {
  if (!kind || !path) return 0;
  if (path[0] == '/' || directory == AT_FDCWD) {
    if (path[0] == '/') snprintf(full, PATH_MAX, "%s", path);
    else if (getcwd(full, PATH_MAX / 2)) {
      strncat(full, "/", 2);
      strncat(full, path, PATH_MAX / 2 - 2);
    } else return 0;
  } else {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(link, full, PATH_MAX / 2);
    if (length < 0) return 0;
    full[length] = 0;
    strncat(full, "/", 2);
    strncat(full, path, PATH_MAX / 2 - 2);
  }
  return inside(full);
}

static int ours_handle(int handle, char *full) {
  if (!kind) return 0;
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
  ssize_t length = readlink(link, full, PATH_MAX - 1);
  if (length <= 0) return 0;
  full[length] = 0;
  return inside(full);
}

/* Counts an operation; returns 0 to go on, an error number to fail with, -1 for half of a write. */
static int meet(enum operation operation, const char *path) {
  int verdict = 0, saved = errno;
  pthread_mutex_lock(&lock);
  long number = ++count;
  if (log_fd >= 0) {
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%ld %s %s\n", number, NAMES[operation], path);
    if (REAL(ssize_t, write, int, const void *, size_t)(log_fd, line, length) < 0) verdict = 0;
  }
  int takes_room = operation == WRITE || operation == CREATE || operation == MAKE;
  int changes_folder = operation != WRITE && operation != SYNC;
  if (kind == KILL && number == at) kill(getpid(), SIGKILL);
  if (kind == TORN && number == at) {
    if (operation == WRITE) verdict = -1;
    else kill(getpid(), SIGKILL);
  }
  if (kind == BROKEN && number == at) verdict = EIO;
  if (kind == FULL && number >= at && takes_room) verdict = ENOSPC;
  if (kind == HALF && number >= at && takes_room)
    verdict = operation == WRITE && number == at ? -1 : ENOSPC;
  if (kind == DENIED && number >= at && changes_folder) verdict = EACCES;
  pthread_mutex_unlock(&lock);
  errno = saved;
  return verdict;
}

static int refuse(int number) {
  errno = number;
  return -1;
}

static int opens(int directory, const char *path, int flags, mode_t mode) {
  char full[PATH_MAX];
  if ((flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) && ours(directory, path, full)) {
    int verdict = meet(CREATE, full);
    if (verdict > 0) return refuse(verdict);
  }
  return REAL(int, openat, int, const char *, int, ...)(directory, path, flags, mode);
}

static mode_t mode_of(int flags, va_list list) {
  return flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;
}

#define OPEN(name)                                \
  int name(const char *path, int flags, ...) {    \
    va_list list;                                 \
    va_start(list, flags);                        \
    mode_t mode = mode_of(flags, list);           \
    va_end(list);                                 \
    return opens(AT_FDCWD, path, flags, mode);    \
  }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                          \
  int name(int directory, const char *path, int flags, ...) { \
    va_list list;                                             \
    va_start(list, flags);                                    \
    mode_t mode = mode_of(flags, list);                       \
    va_end(list);                                             \
    return opens(directory, path, flags, mode);               \
  }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int handle, const void *data, size_t size) {
  char full[PATH_MAX];
  ssize_t (*call)(int, const void *, size_t) = REAL(ssize_t, write, int, const void *, size_t);
  if (ours_handle(handle, full)) {
    int verdict = meet(WRITE, full);
    if (verdict > 0) return refuse(verdict);
    if (verdict < 0) {
      ssize_t written = call(handle, data, size / 2);
      if (kind == TORN) kill(getpid(), SIGKILL);
      return written;
    }
  }
  return call(handle, data, size);
}

#define PWRITE(name)                                                                     \
  ssize_t name(int handle, const void *data, size_t size, off_t offset) {                \
    char full[PATH_MAX];                                                                 \
    ssize_t (*call)(int, const void *, size_t, off_t) =                                  \
        REAL(ssize_t, pwrite, int, const void *, size_t, off_t);                         \
    if (ours_handle(handle, full)) {                                                     \
      int verdict = meet(WRITE, full);                                                   \
      if (verdict > 0) return refuse(verdict);                                           \
      if (verdict < 0) {                                                                 \
        ssize_t written = call(handle, data, size / 2, offset);                          \
        if (kind == TORN) kill(getpid(), SIGKILL);                                       \
        return written;                                                                  \
      }                                                                                  \
    }                                                                                    \
    return call(handle, data, size, offset);                                             \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t writev(int handle, const struct iovec *parts, int number) {
  char full[PATH_MAX];
  if (ours_handle(handle, full)) {
    int verdict = meet(WRITE, full);
    if (verdict > 0) return refuse(verdict);
    if (verdict < 0) {
      ssize_t written = REAL(ssize_t, writev, int, const struct iovec *, int)(handle, parts, (number + 1) / 2);
      if (kind == TORN) kill(getpid(), SIGKILL);
      return written;
    }
  }
  return REAL(ssize_t, writev, int, const struct iovec *, int)(handle, parts, number);
}

/* fopen opens inside libc, where nothing can be put in front; C++ streams use it. */
#define FOPEN(name)                                              \
  FILE *name(const char *path, const char *mode) {               \
    char full[PATH_MAX];                                         \
    if (strpbrk(mode, "wa+") && ours(AT_FDCWD, path, full)) {    \
      int verdict = meet(CREATE, full);                          \
      if (verdict > 0) {                                         \
        errno = verdict;                                         \
        return NULL;                                             \
      }                                                          \
    }                                                            \
    return REAL(FILE *, name, const char *, const char *)(path, mode); \
  }
FOPEN(fopen)
FOPEN(fopen64)

int renameat(int from_directory, const char *from, int to_directory, const char *to) {
  char full[PATH_MAX];
  if (ours(to_directory, to, full)) {
    int verdict = meet(MOVE, full);
    if (verdict > 0) return refuse(verdict);
  }
  return REAL(int, renameat, int, const char *, int, const char *)(from_directory, from, to_directory, to);
}

int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }

int mkdirat(int directory, const char *path, mode_t mode) {
  char full[PATH_MAX];
  if (ours(directory, path, full)) {
    int verdict = meet(MAKE, full);
    if (verdict > 0) return refuse(verdict);
  }
  return REAL(int, mkdirat, int, const char *, mode_t)(directory, path, mode);
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int unlinkat(int directory, const char *path, int flags) {
  char full[PATH_MAX];
  if (ours(directory, path, full)) {
    int verdict = meet(REMOVE, full);
    if (verdict > 0) return refuse(verdict);
  }
  return REAL(int, unlinkat, int, const char *, int)(directory, path, flags);
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

#define SYNCS(name)                                \
  int name(int handle) {                           \
    char full[PATH_MAX];                           \
    if (ours_handle(handle, full)) {               \
      int verdict = meet(SYNC, full);              \
      if (verdict > 0) return refuse(verdict);     \
    }                                              \
    return REAL(int, name, int)(handle);           \
  }
SYNCS(fsync)
SYNCS(fdatasync)
