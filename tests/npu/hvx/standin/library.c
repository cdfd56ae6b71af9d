/* A stand-in for the phone's FastRPC library: the same functions, with an emulated device behind.
 *
 * A skel is looked for where the phone's library looks, and started in qemu-hexagon. Memory of
 * `rpcmem_alloc` is shared with it; all else is copied, as the phone's driver does.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum { MAP = 1, UNMAP, ANNOUNCE, INVOKE };
enum { UNABLE_TO_LOAD = 0x80000406, UNSUPPORTED = 0x80000414, PRIVILEGES = 0x80000415 };
enum { CONNECTION_RESET = 104, BAD_PARAMETER = 14, NO_SUCH_MAP = 0x448 };
enum { CDSP = 3, CONTROL_UNSIGNED = 2, GET_DSP_INFO = 2, UNSIGNED_SUPPORT = 1, ARCHITECTURE = 6 };
enum { PAGE = 65536, MEMORIES = 256 };

typedef union {
  struct { void *at; size_t bytes; } buffer;
  uint64_t handle;
} argument;

static struct { char *at; size_t bytes; int fd; uint32_t device; } memories[MEMORIES];
static int to_device = -1, from_device = -1, allowed, opened;
static pid_t device;

static int put(const void *from, size_t bytes) {
  for (const char *at = from; bytes;) {
    ssize_t done = write(to_device, at, bytes);
    if (done <= 0) return -1;
    at += done, bytes -= (size_t)done;
  }
  return 0;
}

static int get(void *to, size_t bytes) {
  for (char *at = to; bytes;) {
    ssize_t done = read(from_device, at, bytes);
    if (done <= 0) return -1;
    at += done, bytes -= (size_t)done;
  }
  return 0;
}

static int message(uint32_t what, uint32_t a, uint32_t b, uint32_t c) {
  uint32_t words[4] = {what, a, b, c};
  return put(words, sizeof words);
}

static uint32_t asked(uint32_t what, uint32_t a, uint32_t b) {
  uint32_t result = 0;
  if (message(what, a, b, 0) || get(&result, sizeof result)) return 0;
  return result;
}

static void share(int index) {
  char path[64];
  int length = snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)getpid(), memories[index].fd);
  uint32_t at = 0;
  if (message(MAP, (uint32_t)length, (uint32_t)memories[index].bytes, (uint32_t)memories[index].fd) ||
      put(path, (size_t)length) || get(&at, sizeof at))
    at = 0;
  memories[index].device = at;
}

void *rpcmem_alloc(int heap, uint32_t flags, int bytes) {
  (void)heap, (void)flags;
  if (bytes <= 0) return 0;
  for (int index = 0; index < MEMORIES; index++) {
    if (memories[index].at) continue;
    size_t whole = ((size_t)bytes + PAGE - 1) & ~(size_t)(PAGE - 1);
    int fd = memfd_create("rpcmem", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)whole)) return 0;
    void *at = mmap(0, whole, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return 0;
    memories[index].at = at, memories[index].bytes = whole, memories[index].fd = fd;
    if (device) share(index);
    return at;
  }
  return 0;
}

static int memory_of(const void *at) {
  for (int index = 0; index < MEMORIES; index++)
    if (memories[index].at && (const char *)at >= memories[index].at &&
        (const char *)at < memories[index].at + memories[index].bytes)
      return index;
  return -1;
}

int rpcmem_to_fd(void *at) {
  int index = memory_of(at);
  return index < 0 ? -1 : memories[index].fd;
}

void rpcmem_free(void *at) {
  int index = memory_of(at);
  if (index < 0) return;
  if (device) asked(UNMAP, memories[index].device, 0);
  munmap(memories[index].at, memories[index].bytes);
  close(memories[index].fd);
  memories[index].at = 0;
}

int fastrpc_mmap(int domain, int fd, void *at, int offset, size_t bytes, int flags) {
  (void)at, (void)offset, (void)bytes, (void)flags;
  if (domain != CDSP || !device) return BAD_PARAMETER;
  asked(ANNOUNCE, (uint32_t)fd, 1);
  return 0;
}

int fastrpc_munmap(int domain, int fd, void *at, size_t bytes) {
  (void)at, (void)bytes;
  if (domain != CDSP || !device) return NO_SUCH_MAP;
  asked(ANNOUNCE, (uint32_t)fd, 0);
  return 0;
}

int remote_session_control(uint32_t request, void *data, uint32_t bytes) {
  const int *asks = data;
  if (request != CONTROL_UNSIGNED || bytes != 8) return (int)UNSUPPORTED;
  if (getenv("STANDIN_REFUSES_UNSIGNED")) return (int)PRIVILEGES;
  allowed = asks[0] == CDSP && asks[1];
  return 0;
}

int remote_handle_control(uint32_t request, void *data, uint32_t bytes) {
  uint32_t *asks = data;
  if (request != GET_DSP_INFO || bytes != 12 || asks[0] != CDSP) return (int)UNSUPPORTED;
  asks[2] = asks[1] == ARCHITECTURE ? 0x8067 : asks[1] == UNSIGNED_SUPPORT;
  return 0;
}

/* The path of a skel that ADSP_LIBRARY_PATH leads to. */
static int found(const char *uri, char *path, size_t room) {
  const char *start = "file:///", *folders = getenv("ADSP_LIBRARY_PATH");
  if (strncmp(uri, start, strlen(start)) || !strstr(uri, "_dom=cdsp")) return -1;
  uri += strlen(start);
  int name = (int)strcspn(uri, "?");
  while (folders && *folders) {
    int length = (int)strcspn(folders, ";");
    snprintf(path, room, "%.*s/%.*s", length, folders, name, uri);
    if (!access(path, R_OK)) return 0;
    folders += length + (folders[length] == ';');
  }
  return -1;
}

static int start(const char *path) {
  int down[2], up[2];
  if (pipe2(down, O_CLOEXEC) || pipe2(up, O_CLOEXEC)) return -1;
  signal(SIGPIPE, SIG_IGN);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, down[0], 0);
  posix_spawn_file_actions_adddup2(&files, up[1], 1);
  char *words[] = {"qemu-hexagon", (char *)path, 0};
  int failed = posix_spawnp(&device, words[0], &files, 0, words, environ);
  posix_spawn_file_actions_destroy(&files);
  close(down[0]), close(up[1]);
  to_device = down[1], from_device = up[0];
  if (failed) device = 0;
  for (int index = 0; device && index < MEMORIES; index++)
    if (memories[index].at) share(index);
  return failed;
}

static void stop(void) {
  if (!device) return;
  close(to_device), close(from_device);
  waitpid(device, 0, 0);
  device = 0;
}

/* Handles of the phone's library are its own: what the skel gave comes with the rest of a call. */
static int call(uint64_t handle, uint32_t scalars, argument *arguments) {
  uint32_t inputs = scalars >> 16 & 0xff, all = inputs + (scalars >> 8 & 0xff);
  uint32_t handles_in = scalars >> 4 & 0xf, handles = scalars & 0xf, result = CONNECTION_RESET;
  static uint8_t shared[512];
  for (uint32_t index = 0; index < all; index++) {
    int memory = memory_of(arguments[index].buffer.at);
    if (memory < 0) continue;
    size_t before = (size_t)((char *)arguments[index].buffer.at - memories[memory].at);
    if (arguments[index].buffer.bytes > memories[memory].bytes - before) return BAD_PARAMETER;
  }
  if (!device || message(INVOKE, scalars, (uint32_t)handle, (uint32_t)(handle >> 32)))
    return CONNECTION_RESET;
  for (uint32_t index = 0; index < all; index++) {
    char *at = arguments[index].buffer.at;
    int memory = memory_of(at);
    uint32_t place[2] = {0, (uint32_t)arguments[index].buffer.bytes};
    shared[index] = memory >= 0;
    if (shared[index]) place[0] = memories[memory].device + (uint32_t)(at - memories[memory].at);
    if (put(place, sizeof place)) return CONNECTION_RESET;
    if (index < inputs && !shared[index] && put(at, place[1])) return CONNECTION_RESET;
  }
  for (uint32_t index = 0; index < handles_in; index++)
    if (put(&arguments[all + index].handle, 8)) return CONNECTION_RESET;
  if (get(&result, sizeof result)) return CONNECTION_RESET;
  for (uint32_t index = inputs; index < all && !result; index++)
    if (!shared[index] && get(arguments[index].buffer.at, arguments[index].buffer.bytes))
      return CONNECTION_RESET;
  for (uint32_t index = 0; index < handles && !result; index++)
    if (get(&arguments[all + handles_in + index].handle, 8)) return CONNECTION_RESET;
  return (int)result;
}

int remote_handle64_open(const char *uri, uint64_t *handle) {
  char path[4096];
  if (!allowed || found(uri, path, sizeof path)) return (int)UNABLE_TO_LOAD;
  if (!device && start(path)) return (int)UNABLE_TO_LOAD;
  uint32_t length = (uint32_t)strlen(uri) + 1;
  argument arguments[3] = {{.buffer = {&length, 4}}, {.buffer = {(void *)uri, length}}, {.handle = 0}};
  int failed = call(0, 0x00020001, arguments);
  if (!failed) *handle = arguments[2].handle, opened++;
  return failed;
}

int remote_handle64_invoke(uint64_t handle, uint32_t scalars, argument *arguments) {
  return call(handle, scalars, arguments);
}

int remote_handle64_close(uint64_t handle) {
  argument arguments[1] = {{.handle = handle}};
  int failed = call(0, 0x01000010, arguments);
  if (!failed) opened--;
  if (!opened || failed == CONNECTION_RESET) stop(), opened = 0;
  return failed;
}
