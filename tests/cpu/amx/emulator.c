// The AMX instructions on a processor that has none: it refuses them (SIGILL), and this performs
// them on tiles kept for each thread, as Intel's manual says (volume 2; the AMX chapter of volume 1).
// What the manual forbids ends the process with a line that says what.

#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <xmmintrin.h>

enum { TILES = 8, ROWS = 16, LINE = 64 };

typedef uint8_t Tile[ROWS][LINE];

// LDTILECFG's operand.
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t line[TILES], more_lines[8];
    uint8_t rows[TILES], more_rows[8];
} Configuration;

// An instruction, as far as those of AMX differ: VEX.128, map 0F38, W0.
typedef struct {
    int prefix, opcode, mod, reg, rm, vvvv, length;
    uint8_t *start;   // of the memory operand
    int64_t stride;   // of its rows
} Instruction;

static _Thread_local Configuration configuration;
static _Thread_local Tile tiles[TILES];
static struct sigaction before;
static uint64_t performed;

static _Noreturn void refuse(const char *why, int tile) {
    fprintf(stderr, "emulated AMX: %s (tile %d)\n", why, tile);
    abort();
}

static int64_t general(const ucontext_t *context, int number) {
    static const int places[16] = {
        REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
        REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
    };
    return context->uc_mcontext.gregs[places[number]];
}

// The memory operand at `text`, behind ModRM; rows are as far apart as the index says.
static void address(Instruction *made, const uint8_t *text, const ucontext_t *context, int vex) {
    int index_high = vex & 0x40 ? 0 : 8, base_high = vex & 0x20 ? 0 : 8;
    int base = made->rm, size = made->mod == 1 ? 1 : made->mod == 2 ? 4 : 0;
    int64_t place = 0, next = context->uc_mcontext.gregs[REG_RIP];
    if (made->rm == 4) {
        int sib = *text++, index = (sib >> 3 & 7) + index_high;
        made->length++;
        base = sib & 7;
        made->stride = index == 4 ? 0 : (int64_t)((uint64_t)general(context, index) << (sib >> 6));
    }
    int relative = made->mod == 0 && made->rm == 5, absolute = made->mod == 0 && base == 5;
    if (relative || absolute) size = 4;
    else place = general(context, base + base_high);
    if (size == 1) place += (int8_t)*text;
    if (size == 4) {
        int32_t distance;
        memcpy(&distance, text, 4);
        place += distance;
    }
    made->length += size;
    if (relative) place += next + made->length;
    made->start = (uint8_t *)place;
}

static int decode(const ucontext_t *context, Instruction *made) {
    const uint8_t *text = (const uint8_t *)context->uc_mcontext.gregs[REG_RIP];
    if (text[0] != 0xC4 || (text[1] & 0x1F) != 2 || text[2] & 0x84) return 0;
    made->prefix = text[2] & 3;  // none, 66, F3, F2
    made->vvvv = ~(text[2] >> 3) & 15;
    made->opcode = text[3];
    made->mod = text[4] >> 6;
    made->reg = (text[4] >> 3 & 7) + (text[1] & 0x80 ? 0 : 8);
    made->rm = text[4] & 7;
    made->length = 5;
    made->stride = 0;
    made->start = NULL;
    if (made->mod != 3) address(made, text + 5, context, text[1]);
    else if (!(text[1] & 0x20)) made->rm += 8;
    return 1;
}

// Configuration.

static void reset(void) {
    memset(&configuration, 0, sizeof configuration);
    memset(tiles, 0, sizeof tiles);
}

static void configure(const uint8_t *start) {
    Configuration asked;
    memcpy(&asked, start, sizeof asked);
    if (asked.palette > 1) refuse("LDTILECFG: #GP, no such palette", -1);
    for (unsigned i = 0; i < sizeof asked.reserved; i++)
        if (asked.reserved[i]) refuse("LDTILECFG: #GP, reserved bytes are not 0", -1);
    for (int i = 0; i < 8; i++)
        if (asked.more_lines[i] || asked.more_rows[i])
            refuse("LDTILECFG: #GP, reserved bytes are not 0", -1);
    for (int i = 0; i < TILES && asked.palette; i++) {
        if (asked.line[i] > LINE || asked.rows[i] > ROWS) refuse("LDTILECFG: #GP, too large", i);
        if (!asked.line[i] != !asked.rows[i]) refuse("LDTILECFG: #GP, rows or columns of 0", i);
    }
    if (asked.start_row) refuse("LDTILECFG: a start row other than 0 is not emulated", -1);
    reset();
    if (asked.palette) configuration = asked;
}

static void valid(int tile) {
    if (!configuration.palette) refuse("#UD, tiles are not configured", tile);
    if (tile >= TILES || !configuration.rows[tile]) refuse("#UD, no such tile", tile);
}

// Tiles and memory.

static void load(const Instruction *made) {
    int line = configuration.line[made->reg];
    memset(tiles[made->reg], 0, sizeof(Tile));
    for (int row = 0; row < configuration.rows[made->reg]; row++)
        memcpy(tiles[made->reg][row], made->start + row * made->stride, line);
}

static void store(const Instruction *made) {
    int line = configuration.line[made->reg];
    for (int row = 0; row < configuration.rows[made->reg]; row++)
        memcpy(made->start + row * made->stride, tiles[made->reg][row], line);
}

// Products: c, rows by columns of 32 bits, += a, rows by depth, times b, depth by columns.

typedef struct {
    int rows, columns, depth;
    Tile *c, *a, *b;
} Product;

static Product product(int c, int a, int b) {
    valid(c), valid(a), valid(b);
    if (c == a || c == b || a == b) refuse("#UD, the same tile twice in a product", c);
    if (configuration.line[c] % 4 || configuration.line[a] % 4 || configuration.line[b] % 4)
        refuse("#UD, columns that are no multiple of 4 bytes in a product", c);
    if (configuration.rows[c] != configuration.rows[a]) refuse("#UD, rows do not match", c);
    if (configuration.line[c] != configuration.line[b]) refuse("#UD, columns do not match", c);
    if (configuration.line[a] / 4 != configuration.rows[b]) refuse("#UD, depths do not match", a);
    int rows = configuration.rows[c], columns = configuration.line[c] / 4;
    return (Product){rows, columns, configuration.rows[b], &tiles[c], &tiles[a], &tiles[b]};
}

static void fold_bytes(Product p, int signed_a, int signed_b) {
    for (int m = 0; m < p.rows; m++)
        for (int n = 0; n < p.columns; n++) {
            uint32_t sum;
            memcpy(&sum, &(*p.c)[m][4 * n], 4);
            for (int k = 0; k < 4 * p.depth; k++) {
                int x = (*p.a)[m][k], w = (*p.b)[k / 4][4 * n + k % 4];
                sum += (uint32_t)((signed_a ? (int8_t)x : x) * (signed_b ? (int8_t)w : w));
            }
            memcpy(&(*p.c)[m][4 * n], &sum, 4);
        }
}

static float widened(const uint8_t *bfloat16) {
    uint8_t bytes[4] = {0, 0, bfloat16[0], bfloat16[1]};
    float value;
    memcpy(&value, bytes, 4);
    return value;
}

// Fused float32 sums of the even and of the odd of all pairs, then both to c; denormals are 0.
static void fold_bfloat16(Product p) {
    float wide[ROWS][2][LINE / 4] = {0};
    _mm_setcsr(0x9FC0);  // to nearest, no exceptions; the kernel restores the interrupted code's
    for (int k = 0; k < p.depth; k++)
        for (int n = 0; n < 2 * p.columns; n++)
            wide[k][n % 2][n / 2] = widened(&(*p.b)[k][2 * n]);
    for (int m = 0; m < p.rows; m++) {
        float sums[2][LINE / 4] = {0}, line[LINE / 4];
        for (int k = 0; k < p.depth; k++)
            for (int half = 0; half < 2; half++) {
                float x = widened(&(*p.a)[m][4 * k + 2 * half]);
                for (int n = 0; n < LINE / 4; n++)
                    sums[half][n] = __builtin_fmaf(x, wide[k][half][n], sums[half][n]);
            }
        memcpy(line, (*p.c)[m], sizeof line);
        for (int n = 0; n < p.columns; n++) line[n] += sums[0][n] + sums[1][n];
        memcpy((*p.c)[m], line, sizeof line);
    }
}

static int perform(const Instruction *made) {
    int what = made->prefix << 8 | made->opcode, memory = made->mod != 3;
    if (made->opcode == 0x5C || made->opcode == 0x5E) {
        if (memory || what == 0x05C || what == 0x15C || what == 0x35C) return 0;
        Product p = product(made->reg, made->rm, made->vvvv);
        if (what == 0x25C) fold_bfloat16(p);
        else fold_bytes(p, made->prefix >= 2, made->prefix == 3 || made->prefix == 1);
        return 1;
    }
    if (made->vvvv || (made->opcode == 0x4B && (!memory || made->rm != 4))) return 0;
    if (what == 0x049 && memory) configure(made->start);
    else if (what == 0x049) reset();
    else if (what == 0x149 && memory) memcpy(made->start, &configuration, sizeof configuration);
    else if (what == 0x349 && !memory) valid(made->reg), memset(tiles[made->reg], 0, sizeof(Tile));
    else if (what == 0x34B || what == 0x14B) valid(made->reg), load(made);
    else if (what == 0x24B) valid(made->reg), store(made);
    else return 0;
    return 1;
}

// The instruction that was refused, and those of AMX right behind it: a signal costs more than they.
static void handle(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info;
    Instruction made;
    uint64_t count = 0;
    for (; decode(context, &made) && perform(&made); count++)
        ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += made.length;
    __atomic_fetch_add(&performed, count, __ATOMIC_RELAXED);
    if (!count) sigaction(SIGILL, &before, NULL);  // who was there before hears of it, next time
}

// What tests call.

int start_emulation(void) {
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO};
    return sigaction(SIGILL, &action, &before);
}

int stop_emulation(void) { return sigaction(SIGILL, &before, NULL); }

uint64_t performed_instructions(void) { return performed; }
