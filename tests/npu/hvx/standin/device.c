/* The emulated device: FastRPC's side of a skel, behind a pipe.
 *
 * A message is four words and its data. Buffers that the host shares are files, mapped where they
 * lie. Buffers that it does not share are copied to memory that ends where nothing is mapped; what
 * is around them is looked at after every call. So a skel that reads or writes beyond a buffer ends
 * this program. Above this file come cpu/codegen's `system.c` and the number of vector contexts.
 */
union argument {
  struct { byte *at; word bytes; } buffer;
  wide handle;
};

int lutra_skel_handle_invoke(wide handle, word scalars, union argument *arguments);

enum { MAP = 1, UNMAP, ANNOUNCE, INVOKE };
enum { CLOSE = 57, OPENAT = 56, MUNMAP = 215, MMAP2 = 222, MPROTECT = 226 };
enum { NONE = 0, READ_WRITE = 3, SHARED = 1, PRIVATE = 2, FIXED = 0x10, ANONYMOUS = 0x20 };
enum { GUARD = 65536, ROUND = 128, PATTERN = 0xa5, LOOKED_AT = 256, FILES = 256, FOUND_DAMAGE = 9 };

static word rounded(word bytes) { return (bytes + GUARD - 1) & ~(GUARD - 1u); }

/* Room with nothing mapped on either side. */
static word reserved(word bytes) {
  word at = system_call(MMAP2, 0, rounded(bytes) + 2 * GUARD, NONE, PRIVATE | ANONYMOUS, -1, 0);
  return at > 0xfffff000u ? 0 : at + GUARD;
}

static void give_back(word at, word bytes) {
  system_call(MUNMAP, at - GUARD, rounded(bytes) + 2 * GUARD, 0, 0, 0, 0);
}

/* Shared buffers: what FastRPC's `HAP_mmap_get` knows once the host has told of them. */

static struct { word at, bytes, announced; int fd; } files[FILES];

static word map_file(word path_bytes, word bytes, word fd) {
  char path[256];
  if (path_bytes >= sizeof path) leave(2);
  receive(path, path_bytes);
  path[path_bytes] = 0;
  int file = (int)system_call(OPENAT, -100, (word)path, 2, 0, 0, 0);
  word at = file < 0 ? 0 : reserved(bytes);
  if (!at) return 0;
  word got = system_call(MMAP2, at, rounded(bytes), READ_WRITE, SHARED | FIXED, file, 0);
  system_call(CLOSE, file, 0, 0, 0, 0, 0);
  for (word index = 0; got == at && index < FILES; index++) {
    if (files[index].at) continue;
    files[index].at = at, files[index].bytes = bytes, files[index].fd = (int)fd;
    files[index].announced = 0;
    return at;
  }
  return 0;
}

static void unmap(word at) {
  for (word index = 0; index < FILES; index++) {
    if (files[index].at != at) continue;
    give_back(at, files[index].bytes);
    files[index].at = 0;
  }
}

static void announce(int fd, word on) {
  for (word index = 0; index < FILES; index++)
    if (files[index].at && files[index].fd == fd) files[index].announced = on;
}

int HAP_mmap_get(int fd, void **address, wide *physical) {
  for (word index = 0; index < FILES; index++) {
    if (!files[index].at || files[index].fd != fd || !files[index].announced) continue;
    *address = (void *)files[index].at;
    *physical = 0;
    return 0;
  }
  return 0x448;
}

int HAP_mmap_put(int fd) { return fd < 0; }

/* Threads: as many vector contexts as this program is compiled for. A stack is never taken again. */

enum { EXIT_THREAD = 93, YIELD = 124, CLONE = 220, STACK = 65536 };
enum { CLONE_FLAGS = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000 };

struct thread { void *(*start)(void *); void *argument; word done; };

int qurt_hvx_get_units(void) { return CONTEXTS << 8; }

__attribute__((noreturn, used)) static void begin(struct thread *t) {
  t->start(t->argument);
  __atomic_store_n(&t->done, 1, __ATOMIC_RELEASE);
  for (;;) system_call(EXIT_THREAD, 0, 0, 0, 0, 0, 0);
}

/* The new thread comes out of the call with an empty stack: what it begins with is in a register. */
int pthread_create(word *made, const void *attributes, void *(*start)(void *), void *argument) {
  word stack = attributes ? 0 : reserved(STACK);
  if (!stack) return 11;
  system_call(MPROTECT, stack, STACK, READ_WRITE, 0, 0, 0);
  struct thread *t = (struct thread *)stack;
  t->start = start, t->argument = argument, t->done = 0;
  register word r0 asm("r0") = CLONE_FLAGS;
  register word r1 asm("r1") = stack + STACK;
  register word r6 asm("r6") = CLONE;
  register struct thread *r16 asm("r16") = t;
  asm volatile(
      "trap0(#1)\n"
      "p0 = cmp.eq(r0,#0)\n"
      "if (!p0) jump 1f\n"
      "r0 = r16\n"
      "call begin\n"
      "1:\n"
      : "+r"(r0) : "r"(r1), "r"(r6), "r"(r16) : "memory", "p0", "r31");
  if ((int)r0 < 0) leave(5);
  *made = stack;
  return 0;
}

int pthread_join(word thread, void **result) {
  struct thread *t = (struct thread *)thread;
  if (result) *result = 0;
  while (!__atomic_load_n(&t->done, __ATOMIC_ACQUIRE)) system_call(YIELD, 0, 0, 0, 0, 0, 0);
  return 0;
}

/* Buffers that are copied. */

struct copied { byte *at; word bytes, page; };

static void make(struct copied *c) {
  word held = (c->bytes + ROUND - 1) & ~(ROUND - 1u), all = rounded(held + LOOKED_AT);
  c->page = reserved(all);
  if (!c->page) leave(4);
  system_call(MPROTECT, c->page, all, READ_WRITE, 0, 0, 0);
  c->at = (byte *)(c->page + all - held);
  for (word index = 1; index <= LOOKED_AT; index++) c->at[-(int)index] = PATTERN;
  for (word index = c->bytes; index < held; index++) c->at[index] = PATTERN;
}

static void look_at(const struct copied *c) {
  word held = (c->bytes + ROUND - 1) & ~(ROUND - 1u);
  for (word index = 1; index <= LOOKED_AT; index++)
    if (c->at[-(int)index] != PATTERN) leave(FOUND_DAMAGE);
  for (word index = c->bytes; index < held; index++)
    if (c->at[index] != PATTERN) leave(FOUND_DAMAGE);
}

static void drop(const struct copied *c) {
  word held = (c->bytes + ROUND - 1) & ~(ROUND - 1u);
  give_back(c->page, held + LOOKED_AT);
}

/* For each buffer come its place if it is shared, its length, and whether bytes follow. */
static void invoke(word scalars, wide handle) {
  static union argument arguments[2 * 256];
  static struct copied copies[2 * 256];
  word inputs = scalars >> 16 & 0xff, outputs = scalars >> 8 & 0xff, all = inputs + outputs;
  word handles_in = scalars >> 4 & 0xf, handles = scalars & 0xf;
  for (word index = 0; index < all; index++) {
    word place[2];
    receive(place, sizeof place);
    copies[index].page = 0, copies[index].bytes = place[1];
    if (!place[0] && place[1]) {
      make(&copies[index]);
      if (index < inputs) receive(copies[index].at, place[1]);
      place[0] = (word)copies[index].at;
    }
    arguments[index].buffer.at = (byte *)place[0];
    arguments[index].buffer.bytes = place[1];
  }
  for (word index = 0; index < handles_in; index++) receive(&arguments[all + index].handle, 8);
  word result = (word)lutra_skel_handle_invoke(handle, scalars, arguments);
  for (word index = 0; index < all; index++)
    if (copies[index].page) look_at(&copies[index]);
  answer(&result, sizeof result);
  for (word index = inputs; index < all && !result; index++)
    if (copies[index].page) answer(copies[index].at, copies[index].bytes);
  for (word index = 0; index < handles && !result; index++)
    answer(&arguments[all + handles_in + index].handle, 8);
  for (word index = 0; index < all; index++)
    if (copies[index].page) drop(&copies[index]);
}

void _start(void) {
  for (;;) {
    word message[4], result = 0;
    receive(message, sizeof message);
    switch (message[0]) {
      case MAP: result = map_file(message[1], message[2], message[3]); break;
      case UNMAP: unmap(message[1]); break;
      case ANNOUNCE: announce((int)message[1], message[2]); break;
      case INVOKE: invoke(message[1], message[2] | (wide)message[3] << 32); continue;
      default: leave(3);
    }
    answer(&result, sizeof result);
  }
}
