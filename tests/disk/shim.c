// A disk that fails, for the process that this is loaded into (LD_PRELOAD). FAULT_CONTROL names a file of
// six numbers of 64 bits: [0] what happens (0 nothing, 1 the process is killed, 2 calls fail), [1] calls
// that pass before, [2] calls that fail, 0 for all, [3] the error, [4] calls seen, [5] whether reading
// counts, too. Only files below FAULT_FOLDER count.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

enum { FILES = 65536 };
static volatile int64_t *control;
static const char *folder;
static size_t length;
static char counts[FILES];

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("FAULT_CONTROL");
  folder = getenv("FAULT_FOLDER");
  if (!path || !folder) return;
  length = strlen(folder);
  int file = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
  void *at = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  syscall(SYS_close, file);
  if (at != MAP_FAILED) control = at;
}

static int below(const char *path) { return control && path && !strncmp(path, folder, length); }
static int is_ours(int file) { return control && file >= 0 && file < FILES && counts[file]; }

// Whether this call fails; errno says how.
static int fails(void) {
  int64_t seen = __atomic_fetch_add(&control[4], 1, __ATOMIC_SEQ_CST);
  if (control[0] == 0 || seen < control[1]) return 0;
  if (control[0] == 1) { kill(getpid(), SIGKILL); pause(); }
  if (control[2] && seen >= control[1] + control[2]) return 0;
  errno = (int)control[3];
  return 1;
}

static int open_at(int at, const char *path, int flags, mode_t mode) {
  int ours = below(path);
  int writes = (flags & (O_CREAT | O_WRONLY | O_RDWR)) != 0;
  if (ours && (writes || control[5]) && fails()) return -1;
  int file = syscall(SYS_openat, at, path, flags, mode);
  if (file >= 0 && file < FILES) counts[file] = ours;
  return file;
}
#define MODE mode_t mode = 0; if (flags & O_CREAT) { va_list all; va_start(all, flags); mode = va_arg(all, mode_t); va_end(all); }
int open(const char *path, int flags, ...) { MODE return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return open_at(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE return open_at(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE return open_at(at, path, flags, mode); }
int close(int file) { if (file >= 0 && file < FILES) counts[file] = 0; return syscall(SYS_close, file); }
ssize_t read(int file, void *to, size_t size) { if (is_ours(file) && control[5] && fails()) return -1; return syscall(SYS_read, file, to, size); }
ssize_t write(int file, const void *from, size_t size) { if (is_ours(file) && fails()) return -1; return syscall(SYS_write, file, from, size); }
ssize_t pwrite64(int file, const void *from, size_t size, off64_t at) { if (is_ours(file) && fails()) return -1; return syscall(SYS_pwrite64, file, from, size, at); }
ssize_t pwrite(int file, const void *from, size_t size, off_t at) { return pwrite64(file, from, size, at); }
int fsync(int file) { if (is_ours(file) && fails()) return -1; return syscall(SYS_fsync, file); }
int fdatasync(int file) { if (is_ours(file) && fails()) return -1; return syscall(SYS_fdatasync, file); }
int ftruncate64(int file, off64_t size) { if (is_ours(file) && fails()) return -1; return syscall(SYS_ftruncate, file, size); }
int ftruncate(int file, off_t size) { return ftruncate64(file, size); }
int rename(const char *from, const char *to) { if (below(to) && fails()) return -1; return syscall(SYS_rename, from, to); }
int link(const char *from, const char *to) { if (below(to) && fails()) return -1; return syscall(SYS_link, from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) { if (below(to) && fails()) return -1; return syscall(SYS_linkat, a, from, b, to, flags); }
int unlink(const char *path) { if (below(path) && fails()) return -1; return syscall(SYS_unlink, path); }
int mkdir(const char *path, mode_t mode) { if (below(path) && fails()) return -1; return syscall(SYS_mkdir, path, mode); }
