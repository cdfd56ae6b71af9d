/* What LLVM calls where Hexagon has no instruction: kernels are linked with this and nothing else. */
typedef unsigned int word;
typedef unsigned long long wide;

static float float_of(word bits) {
  union { word bits; float value; } both = {.bits = bits};
  return both.value;
}

static word bits_of(float value) {
  union { float value; word bits; } both = {.value = value};
  return both.bits;
}

/* A turn for each bit that the quotient may have; nothing divides by 0. */
static wide divide(wide a, wide b, wide *rest) {
  wide quotient = 0;
  if (a >= b)
    for (int bit = __builtin_clzll(b) - __builtin_clzll(a); bit >= 0; bit--)
      if (a >= b << bit) {
        a -= b << bit;
        quotient |= 1ull << bit;
      }
  *rest = a;
  return quotient;
}

wide __hexagon_udivdi3(wide a, wide b) {
  wide rest;
  return divide(a, b, &rest);
}

wide __hexagon_umoddi3(wide a, wide b) {
  wide rest;
  divide(a, b, &rest);
  return rest;
}

/* Nearest whole number, ties to even: adding 1.5 * 2^23 leaves no room for a fraction. */
float rintf(float x) {
  word size = bits_of(x) & 0x7fffffff;
  if (size >= 0x4b000000) return x;
  volatile float shifted = x + 12582912.0f;
  return shifted - 12582912.0f;
}

/* Newton's steps from a guess that is right to 4 bits; 0 and infinity are their own roots. */
float __hexagon_sqrtf(float x) {
  if (!(x > 0.0f) || bits_of(x) >= 0x7f800000) return x;
  float root = float_of((bits_of(x) >> 1) + 0x1fbb4000);
  for (int step = 0; step < 4; step++) root = 0.5f * (root + x / root);
  return root;
}

float sqrtf(float x) { return __hexagon_sqrtf(x); }

float __extendhfsf2(unsigned short half) {
  word sign = (word)(half & 0x8000) << 16, size = half & 0x7fff;
  if (size >= 0x7c00) return float_of(sign | 0x7f800000 | (size & 0x3ff) << 13);
  /* 2^112 moves the exponent to where float32 has it, subnormal numbers included */
  return float_of(sign | bits_of(float_of(size << 13) * float_of(0x77800000)));
}

unsigned short __truncsfhf2(float value) {
  word bits = bits_of(value), size = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
  if (size > 0x7f800000) return sign | 0x7e00;
  if (size >= 0x477ff000) return sign | 0x7c00;
  if (size < 0x38800000) { /* subnormal: the sum's last bits are the number */
    volatile float placed = float_of(size) + 0.5f;
    return sign | (bits_of(placed) - 0x3f000000);
  }
  word rounded = size - 0x38000000;
  return sign | (rounded + 0xfff + (rounded >> 13 & 1)) >> 13;
}
