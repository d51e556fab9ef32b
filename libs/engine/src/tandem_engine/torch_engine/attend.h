/* One query per head against keys and values that lie in blocks of the pool, read in place. */

#pragma once

#include "elementwise.h"
#include "packs.h"

static const float LOWEST = -3.4e38f; /* of all scores: its probability is 0 */

enum { MAX_SHARED = 16, MAX_HEAD_DIM = 256, MAX_BLOCK = 128 };
enum { MAX_VECTORS = MAX_HEAD_DIM / LANES };

/* How keys and values lie in the pool and are attended to. */
struct attention {
    int64_t block_stride; /* numbers from a block to the next, all layers in between */
    int64_t block_size, heads, kv_heads, head_dim;
    float scale, softcap; /* of scores; softcap 0 is none */
};

/* What the queries of a KV head know so far: a streaming softmax (Milakov and Gimelshein 2018). */
struct state {
    const packs *query;
    floats *total; /* of values; those of PACK neighbours lie apart */
    float *highest, *weight;
};

/* The sums of LANES vectors, in one vector: four rounds in which pairs of vectors become one. */
static inline floats sums_of(floats *v) {
    for (int i = 0; i < 8; i++)
        v[i] = SHUFFLE(v[i], v[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               SHUFFLE(v[i], v[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        v[i] = SHUFFLE(v[i], v[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               SHUFFLE(v[i], v[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        v[i] = SHUFFLE(v[i], v[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               SHUFFLE(v[i], v[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return SHUFFLE(v[0], v[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           SHUFFLE(v[0], v[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

/* One KV head of one block: its queries meet slots [begin, end) of `keys` and `values`, whose tokens lie `stride`
 * numbers apart. The same slots of the next block, `ahead` numbers on, are fetched into the cache meanwhile. */
static inline __attribute__((always_inline)) void attend_block(
    const struct attention *a, struct state state, const number *keys, const number *values, int64_t begin,
    int64_t end, int64_t ahead, int shared, int vectors) {
    int64_t stride = a->kv_heads * a->head_dim;
    float scores[MAX_SHARED][MAX_BLOCK] __attribute__((aligned(64)));
    floats peaks[MAX_SHARED];
    for (int s = 0; s < shared; s++) peaks[s] = (floats){0} + LOWEST;
    for (int64_t group = begin / LANES * LANES; group < end; group += LANES) {
        int64_t first = begin > group ? begin : group, last = end < group + LANES ? end : group + LANES;
        floats dots[MAX_SHARED][LANES];
        if (last - first < LANES)
            for (int s = 0; s < shared; s++) memset(dots[s], 0, sizeof dots[s]);
        for (int64_t t = first; t < last; t++) {
            const number *key = keys + t * stride;
            floats sums[MAX_SHARED];
            for (int s = 0; s < shared; s++) sums[s] = (floats){0};
            for (int p = 0; p < vectors / PACK; p++) {
                packs part = load_packs(key + p * LANES * PACK);
                __builtin_prefetch(key + ahead + p * LANES * PACK, 0, 2);
                for (int s = 0; s < shared; s++)
                    sums[s] = dot(sums[s], part, state.query[s * (vectors / PACK) + p]);
            }
            for (int s = 0; s < shared; s++) dots[s][t - group] = sums[s];
        }
        ints slot = (ints){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + (int32_t)group;
        ints hidden = (slot < (int32_t)begin) | (slot >= (int32_t)end);
        for (int s = 0; s < shared; s++) {
            floats score = sums_of(dots[s]) * a->scale;
            if (a->softcap != 0.0f) score = hyperbolic_tangent(score * (1.0f / a->softcap)) * a->softcap;
            score = chosen(hidden, (floats){0} + LOWEST, score);
            peaks[s] = larger(score, peaks[s]);
            memcpy(&scores[s][group], &score, sizeof score);
        }
    }
    number weights[MAX_SHARED][MAX_BLOCK];
    floats total[MAX_SHARED][MAX_VECTORS];
    for (int s = 0; s < shared; s++) {
        float top = largest(peaks[s]);
        if (state.highest[s] > top) top = state.highest[s];
        floats factor = exponential((floats){0} + (state.highest[s] - top)), added = {0};
        for (int64_t group = begin / LANES * LANES; group < end; group += LANES) {
            floats part;
            memcpy(&part, &scores[s][group], sizeof part);
            part = exponential(part - top);
            added += part;
            store(weights[s] + group, part);
        }
        state.highest[s] = top;
        state.weight[s] = state.weight[s] * factor[0] + sum(added);
        for (int v = 0; v < vectors; v++) total[s][v] = state.total[s * vectors + v] * factor;
    }
    for (int64_t t = begin / PACK * PACK; t < end; t += PACK) {
        /* A neighbour that must not be seen has no weight; what is read in its place is a number at least. */
        const number *first = values + (t < begin ? t + 1 : t) * stride;
        const number *second = values + (t + PACK > end ? t : t + PACK - 1) * stride;
        for (int p = 0; p < vectors / PACK; p++) {
            packs one = load_packs(first + p * LANES * PACK), other = load_packs(second + p * LANES * PACK);
            __builtin_prefetch(first + ahead + p * LANES * PACK, 0, 2);
            if (PACK > 1) __builtin_prefetch(second + ahead + p * LANES * PACK, 0, 2);
            for (int part = 0; part < PACK; part++)
                for (int s = 0; s < shared; s++)
                    total[s][p * PACK + part] =
                        dot(total[s][p * PACK + part], joined(one, other, part), repeated(weights[s] + t));
        }
    }
    for (int s = 0; s < shared; s++)
        for (int v = 0; v < vectors; v++) state.total[s * vectors + v] = total[s][v];
}

/* Sizes that are known to the compiler stay in registers. */
static void attend_any(const struct attention *a, struct state state, const number *keys, const number *values,
                       int64_t begin, int64_t end, int64_t ahead) {
    int shared = (int)(a->heads / a->kv_heads), vectors = (int)(a->head_dim / LANES);
#define KNOWN(SHARED, VECTORS)                                                                            \
    if (shared == SHARED && vectors == VECTORS)                                                           \
        attend_block(a, state, keys, values, begin, end, ahead, SHARED, VECTORS);                         \
    else
    KNOWN(1, 8) KNOWN(2, 8) KNOWN(4, 8) KNOWN(1, 4) KNOWN(2, 4) KNOWN(3, 4) KNOWN(4, 4) KNOWN(8, 4)
        attend_block(a, state, keys, values, begin, end, ahead, shared, vectors);
#undef KNOWN
}

/* The queries `query` (heads, head_dim) of one token see keys [start, count) of `blocks`; out likewise. Of the KV heads
 * only part `part` of `parts` is done. The blocks are walked through once, so that memory is read in long
 * stretches. `keys` is the layer's place in block 0. */
static void attend(const struct attention *a, number *out, const number *query, const number *keys,
                   const int64_t *blocks, int64_t start, int64_t count, int64_t part, int64_t parts) {
    int64_t first = part * a->kv_heads / parts, num_kv_heads = (part + 1) * a->kv_heads / parts - first;
    int64_t shared = a->heads / a->kv_heads, num_heads = num_kv_heads * shared, size = a->block_size;
    int64_t num_vectors = num_heads * a->head_dim / LANES, stride = a->kv_heads * a->head_dim;
    packs queries[num_vectors / PACK + 1];
    floats totals[num_vectors + 1];
    float highest[num_heads + 1], weight[num_heads + 1];
    query += first * shared * a->head_dim;
    out += first * shared * a->head_dim;
    for (int64_t i = 0; i < num_vectors / PACK; i++) queries[i] = load_packs(query + i * LANES * PACK);
    for (int64_t i = 0; i < num_vectors; i++) totals[i] = (floats){0};
    for (int64_t h = 0; h < num_heads; h++) highest[h] = LOWEST, weight[h] = 0;
    for (int64_t block = start / size; block * size < count; block++) {
        int64_t base = block * size, begin = start > base ? start - base : 0;
        int64_t end = count - base < size ? count - base : size;
        int64_t ahead = base + size < count ? (blocks[block + 1] - blocks[block]) * a->block_stride : 0;
        const number *own = keys + blocks[block] * a->block_stride + first * a->head_dim;
        for (int64_t h = 0; h < num_kv_heads; h++) {
            int64_t head = h * shared, vector = head * a->head_dim / LANES;
            struct state state = {queries + vector / PACK, totals + vector, highest + head, weight + head};
            attend_any(a, state, own + h * a->head_dim, own + size * stride + h * a->head_dim, begin, end, ahead);
        }
    }
    for (int64_t i = 0; i < num_vectors; i += PACK) {
        float factor = 1.0f / weight[i * LANES / a->head_dim];
        for (int part = 0; part < PACK; part++) totals[i + part] *= factor;
        store_parts(out + i * LANES, totals + i);
    }
}
