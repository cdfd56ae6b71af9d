/* What programs need that an emulator runs without a system's library: calls of Linux, and a pipe's ends. */
typedef unsigned long word; /* as wide as an address */
typedef unsigned long long wide;
typedef unsigned char byte;

enum { SYS_READ = 63, SYS_WRITE = 64, SYS_EXIT = 94 };

static word system_call(word number, word a, word b, word c, word d, word e, word f) {
#if defined(__hexagon__)
  register word r0 asm("r0") = a;
  register word r1 asm("r1") = b;
  register word r2 asm("r2") = c;
  register word r3 asm("r3") = d;
  register word r4 asm("r4") = e;
  register word r5 asm("r5") = f;
  register word r6 asm("r6") = number;
  asm volatile("trap0(#1)" : "+r"(r0) : "r"(r1), "r"(r2), "r"(r3), "r"(r4), "r"(r5), "r"(r6) : "memory");
#else
  register word r0 asm("x0") = a;
  register word r1 asm("x1") = b;
  register word r2 asm("x2") = c;
  register word r3 asm("x3") = d;
  register word r4 asm("x4") = e;
  register word r5 asm("x5") = f;
  register word r6 asm("x8") = number;
  asm volatile("svc #0" : "+r"(r0) : "r"(r1), "r"(r2), "r"(r3), "r"(r4), "r"(r5), "r"(r6) : "memory");
#endif
  return r0;
}

static void leave(word status) {
  for (;;) system_call(SYS_EXIT, status, 0, 0, 0, 0, 0);
}

static void receive(void *to, word count) {
  for (byte *at = to; count;) {
    int got = (int)system_call(SYS_READ, 0, (word)at, count, 0, 0, 0);
    if (got <= 0) leave(got != 0);
    at += got;
    count -= got;
  }
}

static void answer(const void *from, word count) {
  for (const byte *at = from; count;) {
    int put = (int)system_call(SYS_WRITE, 1, (word)at, count, 0, 0, 0);
    if (put <= 0) leave(1);
    at += put;
    count -= put;
  }
}
