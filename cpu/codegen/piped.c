/* The emulated device: kernels behind a pipe. Requests come on stdin, answers go to stdout.
 *
 * A request is four words (what, and three numbers), then data where there are. Memory is asked
 * for once and kept; files are mapped, so that a bundle's weights are read where they lie. Above
 * this file comes `system.c`.
 */
enum { ALLOCATE = 1, WRITE, READ, MAP, RUN };
enum { SYS_OPENAT = 56, SYS_CLOSE = 57, SYS_MMAP2 = 222 };
enum { AT_FDCWD = -100, PROT_READ = 1, PROT_READ_WRITE = 3, MAP_PRIVATE = 2, MAP_ANONYMOUS = 0x20 };

/* An address, or 0. */
static word mapped(word size, word protection, word flags, word file) {
  word address = system_call(SYS_MMAP2, 0, size, protection, flags, file, 0);
  return address > (word)-4096 ? 0 : address;
}

static word map_file(word path_bytes, word size) {
  char path[4096];
  if (path_bytes >= sizeof path) leave(2);
  receive(path, path_bytes);
  path[path_bytes] = 0;
  int file = (int)system_call(SYS_OPENAT, AT_FDCWD, (word)path, 0, 0, 0, 0);
  if (file < 0) return 0;
  word address = mapped(size, PROT_READ, MAP_PRIVATE, file);
  system_call(SYS_CLOSE, file, 0, 0, 0, 0, 0);
  return address;
}

/* Rows of a kernel's address, the address of its arguments and the number of threads, whose parts
 * run one after the other. */
static void run(const word *row, word rows) {
  for (; rows--; row += 3) {
    void (*kernel)(word, wide, wide) = (void *)row[0];
    for (word thread = 0; thread < row[2]; thread++) kernel(row[1], thread, row[2]);
  }
}

int main(void) {
  for (;;) {
    word request[4];
    receive(request, sizeof request);
    word result = 0;
    switch (request[0]) {
      case ALLOCATE: result = mapped(request[1], PROT_READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1); break;
      case WRITE: receive((void *)request[1], request[2]); continue;
      case READ: answer((void *)request[1], request[2]); continue;
      case MAP: result = map_file(request[1], request[2]); break;
      case RUN: run((const word *)request[1], request[2]); break;
      default: leave(3);
    }
    answer(&result, sizeof result);
  }
}

void _start(void) { leave(main()); }
