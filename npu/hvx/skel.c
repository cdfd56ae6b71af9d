/* The device side of FastRPC: a call comes in, every buffer of it is checked, kernels run.
 *
 * Above this file come the protocol's numbers, and below the declarations the table of kernels with
 * what each may touch. It needs no header and no library; what the device's system may offer is
 * looked up as it is loaded, and done without where it is not there.
 */
typedef unsigned int word;
typedef unsigned long long wide;
typedef unsigned char byte;

/* FastRPC's argument of a call. */
union argument {
  struct { byte *at; word bytes; } buffer;
  wide handle;
};

enum { READ, WRITTEN, WHOLE, NUMBER };

/* A slot's kind; for memory the alignment, for integers the bounds. */
struct slot { word kind, alignment; wide least, most; };

struct kernel {
  const char *name;
  void (*run)(word, wide, wide);
  word count;
  const char *described;
  const struct slot *slots;
  void (*sizes)(const wide *slots, wide parts, wide *need);
};

/*KERNELS*/

enum { KERNELS = sizeof kernels / sizeof *kernels };

struct buffer { byte *at; word bytes, writable, generation; int fd; };

/* What was wrong with the last call that was refused. */
struct detail { word fault, call, slot, zero; wide found, need; };

struct session {
  word open, generation;
  struct detail detail;
  struct buffer buffers[BUFFERS];
};

static struct session sessions[SESSIONS];
static word busy;

/* What the device's system has: mapped buffers, threads, vector contexts. */
#define WEAK __attribute__((weak))
WEAK int HAP_mmap_get(int fd, void **address, wide *physical);
WEAK int HAP_mmap_put(int fd);
WEAK int pthread_create(word *thread, const void *attributes, void *(*start)(void *), void *argument);
WEAK int pthread_join(word thread, void **result);
WEAK int qurt_hvx_lock(int mode);
WEAK int qurt_hvx_unlock(void);
WEAK int qurt_hvx_get_units(void);

enum { MOST_WORKERS = 8, HVX_128_BYTES = 1 };

static word refused(struct session *s, word fault, word call, word slot, wide found, wide need) {
  s->detail = (struct detail){fault, call, slot, 0, found, need};
  return fault;
}

/* Sessions and buffers. A handle is an index and a generation, so that an old one is known. */

static struct session *session_of(wide handle) {
  word index = (handle & 0xff) - 1, generation = handle >> 8;
  if (handle >> 32 || index >= SESSIONS || !sessions[index].open) return 0;
  return sessions[index].generation == generation ? &sessions[index] : 0;
}

static word open_session(union argument *a) {
  for (word index = 0; index < SESSIONS; index++) {
    struct session *s = &sessions[index];
    if (s->open) continue;
    s->open = 1;
    s->generation = (s->generation + 1) & 0xffff;
    a[2].handle = s->generation << 8 | (index + 1);
    return 0;
  }
  return FAULT_FULL;
}

static void release(struct buffer *b) {
  if (b->at && HAP_mmap_put) HAP_mmap_put(b->fd);
  b->at = 0;
}

static word close_session(wide handle) {
  struct session *s = session_of(handle);
  if (!s) return FAULT_SESSION;
  for (word index = 0; index < BUFFERS; index++) release(&s->buffers[index]);
  s->open = 0;
  return 0;
}

static struct buffer *attached(struct session *s, word reference) {
  word index = reference & 0xff, generation = reference >> 8 & 0xffff;
  if (reference >> 24 != ATTACHED || index >= BUFFERS) return 0;
  struct buffer *b = &s->buffers[index];
  return b->at && b->generation == generation ? b : 0;
}

/* fd, bytes, writable -> reference. How long a mapping is, only the host knows. */
static word attach(struct session *s, const word *asked, word *reference) {
  for (word index = 0; index < BUFFERS; index++) {
    struct buffer *b = &s->buffers[index];
    if (b->at) continue;
    void *at = 0;
    wide physical;
    if (!HAP_mmap_get || HAP_mmap_get(asked[0], &at, &physical) || !at)
      return refused(s, FAULT_UNMAPPED, 0, 0, asked[0], 0);
    word generation = (b->generation + 1) & 0xffff;
    *b = (struct buffer){at, asked[1], asked[2] & 1, generation, (int)asked[0]};
    *reference = ATTACHED << 24 | generation << 8 | index;
    return 0;
  }
  return refused(s, FAULT_FULL, 0, 0, BUFFERS, BUFFERS);
}

static word detach(struct session *s, word reference) {
  struct buffer *b = attached(s, reference);
  if (!b) return refused(s, FAULT_BUFFER, 0, 0, reference, 0);
  release(b);
  return 0;
}

/* Kernels by name. */

static word same(const char *a, const byte *b, word bytes) {
  word at = 0;
  for (; at < bytes && a[at]; at++)
    if ((byte)a[at] != b[at]) return 0;
  return at == bytes && !a[at];
}

static word find(struct session *s, const union argument *name, const union argument *answer) {
  for (word index = 0; index < KERNELS; index++) {
    const struct kernel *k = &kernels[index];
    if (!same(k->name, name->buffer.at, name->buffer.bytes)) continue;
    word bytes = 1;
    while (k->described[bytes - 1]) bytes++;
    if (answer->buffer.bytes < bytes + 4)
      return refused(s, FAULT_SHORT, 0, 1, answer->buffer.bytes, bytes + 4);
    *(word *)answer->buffer.at = index;
    for (word at = 0; at < bytes; at++) answer->buffer.at[4 + at] = k->described[at];
    return 0;
  }
  return refused(s, FAULT_KERNEL, 0, 0, 0, 0);
}

/* A run's calls. What is checked is a copy: the host may write to the request meanwhile. */

struct run {
  struct session *session;
  const union argument *arguments;
  word inputs, outputs, calls, at; /* `at`: where in the request the next call is */
  const struct kernel *kernel;
  word parts;
  wide slots[SLOTS];
};

static word memory(struct run *r, word call, word index, wide need) {
  const struct slot *slot = &r->kernel->slots[index];
  word reference = (word)r->slots[index], kind = reference >> 24;
  wide offset = r->slots[index] >> 32, bytes;
  byte *start;
  r->slots[index] = 0;
  if (!need) return 0;
  if (kind == ATTACHED) {
    struct buffer *b = attached(r->session, reference);
    if (!b) return refused(r->session, FAULT_BUFFER, call, index, reference, 0);
    if (slot->kind == WRITTEN && !b->writable)
      return refused(r->session, FAULT_READ_ONLY, call, index, reference, 0);
    start = b->at, bytes = b->bytes;
  } else {
    word place = reference & 0xffffff;
    word outputs = kind == OUTPUT, most = outputs ? r->outputs : r->inputs - 1;
    if ((kind != INPUT && kind != OUTPUT) || place >= most)
      return refused(r->session, FAULT_BUFFER, call, index, reference, 0);
    if (slot->kind == WRITTEN && !outputs)
      return refused(r->session, FAULT_READ_ONLY, call, index, reference, 0);
    const union argument *a = &r->arguments[(outputs ? r->inputs : 1) + place];
    start = a->buffer.at, bytes = a->buffer.bytes;
    if (!start) return refused(r->session, FAULT_BUFFER, call, index, reference, 0);
  }
  if (offset > bytes || need > bytes - offset)
    return refused(r->session, FAULT_RANGE, call, index, bytes, offset + need);
  word address = (word)start + (word)offset;
  if (address & (slot->alignment - 1))
    return refused(r->session, FAULT_MISALIGNED, call, index, address, slot->alignment);
  r->slots[index] = address;
  return 0;
}

/* What a kernel writes is apart from all else that it is given. */
static word overlaps(struct run *r, word call, const wide *need) {
  for (word slot = 0; slot < r->kernel->count; slot++) {
    if (r->kernel->slots[slot].kind != WRITTEN || !need[slot]) continue;
    for (word other = 0; other < r->kernel->count; other++) {
      if (other == slot || r->kernel->slots[other].kind > WRITTEN || !need[other]) continue;
      wide a = r->slots[slot], b = r->slots[other];
      if (a < b + need[other] && b < a + need[slot])
        return refused(r->session, FAULT_OVERLAP, call, slot, a, b);
    }
  }
  return 0;
}

/* Take the next call from the request and check it. */
static word prepare(struct run *r, word call) {
  const byte *request = r->arguments[0].buffer.at;
  word bytes = r->arguments[0].buffer.bytes;
  if (bytes - r->at < 8) return refused(r->session, FAULT_REQUEST, call, 0, bytes, r->at + 8);
  const volatile word *head = (const volatile word *)(request + r->at);
  word index = head[0];
  r->parts = head[1];
  r->at += 8;
  if (index >= KERNELS) return refused(r->session, FAULT_KERNEL, call, 0, index, KERNELS);
  if (!r->parts || r->parts > PARTS)
    return refused(r->session, FAULT_NUMBER, call, SLOTS, r->parts, PARTS);
  r->kernel = &kernels[index];
  if (bytes - r->at < 8 * r->kernel->count)
    return refused(r->session, FAULT_REQUEST, call, 0, bytes, r->at + 8 * r->kernel->count);
  const volatile wide *given = (const volatile wide *)(request + r->at);
  r->at += 8 * r->kernel->count;
  wide need[SLOTS];
  for (word slot = 0; slot < r->kernel->count; slot++) {
    const struct slot *kind = &r->kernel->slots[slot];
    wide value = r->slots[slot] = given[slot];
    if (kind->kind == WHOLE && (value < kind->least || value > kind->most))
      return refused(r->session, FAULT_NUMBER, call, slot, value, value < kind->least ? kind->least : kind->most);
  }
  r->kernel->sizes(r->slots, r->parts, need);
  for (word slot = 0; slot < r->kernel->count; slot++) {
    if (r->kernel->slots[slot].kind > WRITTEN) continue;
    word fault = memory(r, call, slot, need[slot]);
    if (fault) return fault;
  }
  return overlaps(r, call, need);
}

/* Workers: one for each vector context, which meet before and behind every call. */

struct team {
  struct run *run;
  word workers, ready, arrived, turn, fault, stopped;
};

struct worker { struct team *team; word index, thread; };

static word seen(word *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }

static void meet(struct team *t) {
  if (t->workers == 1) return;
  word turn = seen(&t->turn);
  if (__atomic_add_fetch(&t->arrived, 1, __ATOMIC_ACQ_REL) == t->workers) {
    __atomic_store_n(&t->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&t->turn, turn + 1, __ATOMIC_RELEASE);
  } else {
    while (seen(&t->turn) == turn) continue;
  }
}

static void *work(void *argument) {
  struct worker *self = argument;
  struct team *t = self->team;
  while (!seen(&t->ready)) continue;
  if (qurt_hvx_lock) qurt_hvx_lock(HVX_128_BYTES);
  for (word call = 0; call < t->run->calls; call++) {
    if (!self->index && prepare(t->run, call)) t->stopped = 1;
    meet(t);
    if (t->stopped) break;
    for (word part = self->index; part < t->run->parts; part += t->workers)
      t->run->kernel->run((word)t->run->slots, part, t->run->parts);
    meet(t);
  }
  if (qurt_hvx_lock && qurt_hvx_unlock) qurt_hvx_unlock();
  return 0;
}

/* Vector contexts that can be used: one, where the system offers no threads. */
static word contexts(void) {
  if (!pthread_create || !pthread_join || !qurt_hvx_get_units) return 1;
  word units = (word)qurt_hvx_get_units() >> 8 & 0xff;
  return units < 1 ? 1 : units > MOST_WORKERS ? MOST_WORKERS : units;
}

static word run(struct session *s, const union argument *a, word inputs, word outputs) {
  if ((word)a[0].buffer.at & 7)
    return refused(s, FAULT_MISALIGNED, 0, SLOTS, (word)a[0].buffer.at, 8);
  if (a[0].buffer.bytes < 8) return refused(s, FAULT_REQUEST, 0, SLOTS, a[0].buffer.bytes, 8);
  struct run r;
  r.session = s, r.arguments = a, r.inputs = inputs, r.outputs = outputs;
  r.calls = *(const volatile word *)a[0].buffer.at, r.at = 8;
  /* all are checked before any runs */
  word most = 1;
  for (word call = 0; call < r.calls; call++) {
    word fault = prepare(&r, call);
    if (fault) return fault;
    if (r.parts > most) most = r.parts;
  }
  if (r.at != a[0].buffer.bytes)
    return refused(s, FAULT_REQUEST, r.calls, SLOTS, a[0].buffer.bytes, r.at);
  r.at = 8;
  struct team team = {&r, 1, 0, 0, 0, 0, 0};
  struct worker workers[MOST_WORKERS];
  workers[0].team = &team, workers[0].index = 0;
  word wanted = contexts() < most ? contexts() : most, count = 1;
  for (; count < wanted; count++) {
    workers[count].team = &team, workers[count].index = count;
    if (pthread_create(&workers[count].thread, 0, work, &workers[count])) break;
  }
  team.workers = count;
  __atomic_store_n(&team.ready, 1, __ATOMIC_RELEASE);
  work(&workers[0]);
  for (word index = 1; index < count; index++) pthread_join(workers[index].thread, 0);
  return team.stopped ? s->detail.fault : 0;
}

/* Each method's buffers: how many, and how long the first input and the first output are. */
static word check(struct session *s, word method, word counts, const union argument *a) {
  static const struct { word counts, input, output; } shapes[] = {
      [METHOD_DESCRIBE] = {0x000100, 0, 16}, [METHOD_ATTACH] = {0x010100, 12, 4},
      [METHOD_DETACH] = {0x010000, 4, 0},    [METHOD_FIND] = {0x010100, 1, 4},
      [METHOD_EXPLAIN] = {0x000100, 0, sizeof(struct detail)},
  };
  word inputs = counts >> 16, outputs = counts >> 8 & 0xff;
  if (counts != shapes[method].counts)
    return refused(s, FAULT_COUNTS, 0, SLOTS, counts, shapes[method].counts);
  word need[2] = {shapes[method].input, shapes[method].output};
  for (word index = 0; index < inputs + outputs; index++) {
    word wanted = need[index >= inputs], found = a[index].buffer.at ? a[index].buffer.bytes : 0;
    if (found < wanted) return refused(s, FAULT_SHORT, 0, index, found, wanted);
    if (wanted > 1 && (word)a[index].buffer.at & 7)
      return refused(s, FAULT_MISALIGNED, 0, index, (word)a[index].buffer.at, 8);
  }
  return 0;
}

static word describe(word *answer) {
  answer[0] = VERSION;
  answer[1] = __HEXAGON_ARCH__;
  answer[2] = contexts();
  answer[3] = KERNELS;
  return 0;
}

static word dispatch(struct session *s, word method, word counts, union argument *a) {
  word inputs = counts >> 16, outputs = counts >> 8 & 0xff;
  if (method == METHOD_RUN) {
    if (counts & 0xff || !inputs || inputs > ARGUMENTS || outputs > ARGUMENTS || !a[0].buffer.at)
      return refused(s, FAULT_COUNTS, 0, SLOTS, counts, 0x010000);
    return run(s, a, inputs, outputs);
  }
  word fault = check(s, method, counts, a);
  if (fault) return fault;
  switch (method) {
    case METHOD_DESCRIBE: return describe((word *)a[0].buffer.at);
    case METHOD_ATTACH: return attach(s, (const word *)a[0].buffer.at, (word *)a[1].buffer.at);
    case METHOD_DETACH: return detach(s, *(const word *)a[0].buffer.at);
    case METHOD_FIND: return find(s, &a[0], &a[1]);
    default: *(struct detail *)a[0].buffer.at = s->detail; return 0;
  }
}

static word invoke(wide handle, word scalars, union argument *a) {
  word method = scalars >> 24 & 0x1f, counts = scalars & 0xffffff;
  if (method == METHOD_OPEN) return counts == 0x020001 ? open_session(a) : FAULT_COUNTS;
  if (method == METHOD_CLOSE) return counts == 0x000010 ? close_session(a[0].handle) : FAULT_COUNTS;
  struct session *s = session_of(handle);
  if (!s) return FAULT_SESSION;
  if (method > METHOD_EXPLAIN) return refused(s, FAULT_METHOD, 0, SLOTS, method, METHOD_EXPLAIN);
  return dispatch(s, method, counts, a);
}

/* FastRPC's entry. Its threads may come at once; one of them is served. */
int lutra_skel_handle_invoke(wide handle, word scalars, union argument *a) {
  if (__atomic_exchange_n(&busy, 1, __ATOMIC_ACQUIRE)) return FAULT_BUSY;
  word result = invoke(handle, scalars, a);
  __atomic_store_n(&busy, 0, __ATOMIC_RELEASE);
  return (int)result;
}
