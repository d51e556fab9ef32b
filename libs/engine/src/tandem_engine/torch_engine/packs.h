/* Products of stored numbers: what lies side by side in 32 bits is multiplied and summed at once. */

#pragma once

#include "vectors.h"

#ifdef STORAGE_BFLOAT16
enum { PACK = 2 };
typedef ints packs; /* LANES of PACK numbers each */

/* Each lane of sums, plus the products of its two pairs. */
static inline floats dot(floats sums, packs a, packs b) {
#ifdef __AVX512BF16__
    return (floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#else
    sums += (floats)(a & -65536) * (floats)(b & -65536);
    return sums + (floats)(a << 16) * (floats)(b << 16);
#endif
}

static inline packs repeated(const number *from) {
    int32_t pack;
    memcpy(&pack, from, sizeof pack);
    return (packs){0} + pack;
}

/* Every PACKth number of two rows, from number `part` on, side by side: for sums over rows. */
static inline packs joined(packs a, packs b, int part) {
    return part ? (a >> 16 & 0xffff) | (b & -65536) : (a & 0xffff) | b << 16;
}

/* The numbers of which sums[part] has every PACKth. */
static inline void store_parts(number *to, const floats *sums) {
    number parts[PACK][LANES];
    for (int part = 0; part < PACK; part++) store(parts[part], sums[part]);
    for (int i = 0; i < LANES; i++)
        for (int part = 0; part < PACK; part++) to[i * PACK + part] = parts[part][i];
}
#else
enum { PACK = 1 };
typedef floats packs;

static inline floats dot(floats sums, packs a, packs b) { return sums + a * b; }

static inline packs repeated(const number *from) { return (packs){0} + *from; }

static inline packs joined(packs a, packs b, int part) { return part ? b : a; }

static inline void store_parts(number *to, const floats *sums) { store(to, *sums); }
#endif

static inline packs load_packs(const number *from) {
    packs values;
    memcpy(&values, from, sizeof values);
    return values;
}
