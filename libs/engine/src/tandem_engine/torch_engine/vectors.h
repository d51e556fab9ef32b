/* What all kernels share. STORAGE_BFLOAT16 says what queries, keys, values and outputs are stored as; everything is
 * summed in float32. Vector types of 16 floats are GCC's and Clang's; each processor gets the instructions it has. */

#pragma once

#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef float floats __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
enum { LANES = 16 };

/* Lanes of a (from 0 on) and b (from 16 on), as listed. */
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ints){__VA_ARGS__})
#endif

enum { PARALLEL_FROM = 16384 }; /* numbers; fewer are done before other threads are awake */

static inline floats load_floats(const float *from) {
    floats values;
    memcpy(&values, from, sizeof values);
    return values;
}

#ifdef STORAGE_BFLOAT16
typedef uint16_t number;
typedef uint16_t halves __attribute__((vector_size(32)));

static inline floats load(const number *from) {
    halves packed;
    memcpy(&packed, from, sizeof packed);
    ints wide = __builtin_convertvector(packed, ints) << 16;
    return (floats)wide;
}

static inline void store(number *to, floats values) {
#ifdef __AVX512BF16__
    __m256bh packed = _mm512_cvtneps_pbh((__m512)values);
#else
    ints bits = (ints)values; /* round to nearest, ties to even */
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    halves packed = __builtin_convertvector(bits, halves);
#endif
    memcpy(to, &packed, sizeof packed);
}
#else
typedef float number;

static inline floats load(const number *from) { return load_floats(from); }

static inline void store(number *to, floats values) { memcpy(to, &values, sizeof values); }
#endif

/* What is kept of values that are stored: models are trained with these roundings, so each stays where it is. */
static inline floats rounded(floats values) {
    number stored[LANES];
    store(stored, values);
    return load(stored);
}

static inline float sum(floats values) {
    typedef float eight __attribute__((vector_size(32)));
    typedef float four __attribute__((vector_size(16)));
    eight by_eight[2];
    four by_four[2];
    memcpy(by_eight, &values, sizeof by_eight);
    by_eight[0] += by_eight[1];
    memcpy(by_four, by_eight, sizeof by_four);
    by_four[0] += by_four[1];
    return (by_four[0][0] + by_four[0][2]) + (by_four[0][1] + by_four[0][3]);
}

/* Lanes of `yes` where `which` is all ones, of `no` where it is 0. */
static inline floats chosen(ints which, floats yes, floats no) {
    return (floats)(((ints)yes & which) | ((ints)no & ~which));
}

static inline floats larger(floats a, floats b) {
#ifdef __AVX512F__
    return (floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return chosen(a > b, a, b);
#endif
}

static inline float largest(floats values) {
#ifdef __AVX512F__
    return _mm512_reduce_max_ps((__m512)values);
#else
    float lanes[LANES];
    memcpy(lanes, &values, sizeof lanes);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    return lanes[0];
#endif
}

/* e^x for x <= 0, to about 2 ulp: 2^n times a polynomial (Cephes' coefficients), 0 below the smallest normal. */
static inline floats exponential(floats x) {
    ints small = x < -87.0f;
    floats scaled = x * 1.44269504088896341f - 0.5f; /* truncation rounds towards 0: to nearest, for x <= 0 */
    ints n = __builtin_convertvector(scaled, ints);
    floats whole = __builtin_convertvector(n, floats);
    floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    floats power = (floats)((n + 127) << 23);
    ints result = (ints)(p * power) & ~small;
    return (floats)result;
}

/* 2^x for x <= 0: to 2e-7 of it, or to 5e-5 where it will be rounded to bfloat16. 0 below the smallest normal. */
static inline floats power_of_two(floats x) {
#ifdef __AVX512F__
    floats whole = (floats)_mm512_roundscale_ps((__m512)x, 0);
#else
    ints tiny = x < -126.0f;
    ints number = __builtin_convertvector(x - 0.5f, ints); /* truncation rounds towards 0: to nearest, for x <= 0 */
    floats whole = __builtin_convertvector(number, floats);
#endif
    floats r = x - whole; /* Taylor's series of 2^r, |r| <= 1/2 */
#ifdef STORAGE_BFLOAT16
    floats p = r * 9.618129107e-3f + 5.550410867e-2f;
#else
    floats p = r * 1.540353039e-4f + 1.333355815e-3f;
    p = p * r + 9.618129107e-3f;
    p = p * r + 5.550410867e-2f;
#endif
    p = p * r + 2.402265070e-1f;
    p = p * r + 6.931471806e-1f;
    p = p * r + 1.0f;
#ifdef __AVX512F__
    return (floats)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    ints result = (ints)(p * (floats)((number + 127) << 23)) & ~tiny;
    return (floats)result;
#endif
}
