/* Attention of prompt chunks to keys and values that lie in blocks of the pool: scores stay in the caches
 * (FlashAttention; Dao et al. 2022), and what a query must not see is not computed. */

#pragma once

#include "attend.h"

enum {
    CHUNK_ROWS = 6,                       /* of a tile: with 4 vectors each they fill the registers */
    WIDTH = 4,                            /* vectors in a tile's row */
    KEYS = WIDTH * LANES,                 /* scores in a tile's row */
    STRETCH_ROWS = 32 * CHUNK_ROWS,       /* that share one packing of keys and values */
};

/* Scores of hidden keys, and the highest of a row that has met none: scaled or not, the former stay far below. */
static const float HIDDEN = -1e37f, NOTHING = -1e30f;

/* Consecutive tokens of one sequence under one KV head. Rows are (token, head), those heads that share the KV head. */
struct stretch {
    const number *queries; /* of the first token's first head */
    number *out;
    int64_t query_stride, out_stride; /* numbers from token to token */
    int64_t tokens, shared;
    int64_t position; /* of the first token */
    int64_t window;
    const number *keys;    /* of the layer and the head, in block 0 */
    const int64_t *blocks; /* of the sequence */
};

/* One thread's workspace; kept from call to call, so that its memory is there already. */
static _Thread_local struct {
    floats totals[STRETCH_ROWS * MAX_VECTORS]; /* (rows, head_dim) */
    packs keys[MAX_HEAD_DIM / PACK * WIDTH];   /* (head_dim / PACK, KEYS) */
    packs values[KEYS / PACK * MAX_VECTORS];   /* (KEYS / PACK, head_dim) */
    float highest[STRETCH_ROWS], weight[STRETCH_ROWS];
} space __attribute__((aligned(64)));

#define EXCHANGE(STEP, LOW, HIGH)                                                                             \
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) if (!(i & STEP)) {                               \
        packs a = rows[i], b = rows[i + STEP];                                                             \
        rows[i] = SHUFFLE(a, b, LOW);                                                                         \
        rows[i + STEP] = SHUFFLE(a, b, HIGH);                                                                 \
    }
/* Rows become columns. */
static inline void transpose(packs rows[LANES]) {
#define L8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define H8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define L4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define H4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define L2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define H2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define L1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define H1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
    EXCHANGE(8, L8, H8) EXCHANGE(4, L4, H4) EXCHANGE(2, L2, H2) EXCHANGE(1, L1, H1)
}

/* Keys [first, first + count) as columns, their values in rows of packs; what is missing of KEYS is 0. */
static void pack(const struct attention *a, const struct stretch *s, int64_t first, int64_t count) {
    int64_t stride = a->kv_heads * a->head_dim, vectors = a->head_dim / LANES;
    const number *key[KEYS];
    int64_t block = first / a->block_size, slot = first % a->block_size;
    for (int64_t k = 0; k < count; k++) {
        key[k] = s->keys + s->blocks[block] * a->block_stride + slot * stride;
        if (++slot == a->block_size) block++, slot = 0;
    }
    for (int w = 0; w < WIDTH; w++)
        for (int64_t d = 0; d < a->head_dim / PACK; d += LANES) {
            packs rows[LANES];
            for (int i = 0; i < LANES; i++)
                rows[i] = w * LANES + i < count ? load_packs(key[w * LANES + i] + d * PACK) : (packs){0};
            transpose(rows);
            for (int i = 0; i < LANES; i++) space.keys[(d + i) * WIDTH + w] = rows[i];
        }
    int64_t to_values = a->block_size * stride;
    for (int64_t k = 0; k < KEYS; k += PACK)
        for (int64_t v = 0; v < vectors; v += PACK) {
            packs parts[PACK];
            for (int p = 0; p < PACK; p++)
                parts[p] = k + p < count ? load_packs(key[k + p] + to_values + v * LANES) : (packs){0};
            for (int p = 0; p < PACK; p++)
                space.values[k / PACK * vectors + v + p] = joined(parts[0], parts[PACK - 1], p);
        }
}

/* sums (CHUNK_ROWS, width) = sums * factors + x (CHUNK_ROWS, depth) y (depth, width), without factors the product
 * alone; depth counts packs. Rows of sums and y lie `sum_stride` and `y_stride` vectors apart. */
static inline __attribute__((always_inline)) void product_of(
    floats *restrict sums, int64_t sum_stride, const float *factors, const number *const *x, const packs *restrict y,
    int64_t y_stride, int64_t depth, int width) {
    floats total[CHUNK_ROWS][WIDTH];
    for (int r = 0; r < CHUNK_ROWS; r++)
        for (int w = 0; w < width; w++)
            total[r][w] = factors ? sums[r * sum_stride + w] * factors[r] : (floats){0};
    for (int64_t d = 0; d < depth; d++) {
        packs right[WIDTH];
        for (int w = 0; w < width; w++) right[w] = y[d * y_stride + w];
        for (int r = 0; r < CHUNK_ROWS; r++) {
            packs left = repeated(x[r] + d * PACK);
            for (int w = 0; w < width; w++) total[r][w] = dot(total[r][w], left, right[w]);
        }
    }
    for (int r = 0; r < CHUNK_ROWS; r++)
        for (int w = 0; w < width; w++) sums[r * sum_stride + w] = total[r][w];
}

static void product(floats *sums, int64_t sum_stride, const float *factors, const number *const *x, const packs *y,
                    int64_t y_stride, int64_t depth, int width) {
    /* Sizes that are known to the compiler stay in registers. */
#define KNOWN(N)                                                                                              \
    case N:                                                                                                   \
        if (factors)                                                                                          \
            product_of(sums, sum_stride, factors, x, y, y_stride, depth, N);                                  \
        else                                                                                                  \
            product_of(sums, sum_stride, 0, x, y, y_stride, depth, N);                                        \
        break;
    switch (width) { KNOWN(1) KNOWN(2) KNOWN(3) KNOWN(4) }
#undef KNOWN
}

/* Keys [low, high) of a tile's, by row. */
struct seen {
    int64_t low[CHUNK_ROWS], high[CHUNK_ROWS];
};

/* Hides a row's scores (width vectors) but for the keys [low, high); the largest that is left. */
static inline float hide(floats *scores, int width, int64_t low, int64_t high) {
    static const ints numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    floats top = {0};
    top += HIDDEN;
    for (int w = 0; w < width; w++) {
        if (low > w * LANES || high < (w + 1) * LANES) {
            ints key = numbers + w * LANES;
            scores[w] = chosen((key >= (int32_t)low) & (key < (int32_t)high), scores[w], (floats){0} + HIDDEN);
        }
        top = larger(top, scores[w]);
    }
    return largest(top);
}

/* Scores (CHUNK_ROWS, width) of the rows from `row` on to probabilities: powers of 2 of the scores times `scale`. What
 * the rows knew so far counts `factors` from now on. */
static inline void soften(floats *scores, number *out, int width, int64_t row, const struct seen *seen, float scale,
                          float *factors) {
    floats highest = {0}, known = {0};
    for (int r = 0; r < CHUNK_ROWS; r++) {
        known[r] = space.highest[row + r];
        highest[r] = hide(scores + r * WIDTH, width, seen->low[r], seen->high[r]) * scale;
    }
    highest = larger(highest, known);
    floats factor = power_of_two(known - highest);
    for (int r = 0; r < CHUNK_ROWS; r++) {
        floats added = {0};
        for (int w = 0; w < width; w++) {
            floats part = power_of_two(scores[r * WIDTH + w] * scale - highest[r]);
            added += part;
            store(out + r * KEYS + w * LANES, part);
        }
        factors[r] = factor[r];
        space.highest[row + r] = highest[r];
        space.weight[row + r] = space.weight[row + r] * factor[r] + sum(added);
    }
}

/* At most STRETCH_ROWS rows. */
static void attend_stretch(const struct attention *a, const struct stretch *s) {
    int64_t depth = a->head_dim / PACK, vectors = a->head_dim / LANES;
    int64_t rows = s->tokens * s->shared, padded = (rows + CHUNK_ROWS - 1) / CHUNK_ROWS * CHUNK_ROWS;
    const float log2_e = 1.44269504f; /* e^x as a power of 2 */
    float scale = (a->softcap != 0.0f ? a->softcap : a->scale) * log2_e;
    for (int64_t m = 0; m < padded; m++) space.highest[m] = NOTHING, space.weight[m] = 0;
    memset(space.totals, 0, (size_t)(padded * a->head_dim) * sizeof(float));
    int64_t begin = s->window && s->position >= s->window ? s->position + 1 - s->window : 0;
    int64_t end = s->position + s->tokens;
    for (int64_t first = begin / KEYS * KEYS; first < end; first += KEYS) {
        pack(a, s, first, end - first < KEYS ? end - first : KEYS);
        for (int64_t m = 0; m < padded; m += CHUNK_ROWS) {
            struct seen seen; /* counted from `first` */
            const number *queries[CHUNK_ROWS], *probabilities[CHUNK_ROWS];
            number parts[CHUNK_ROWS * KEYS] __attribute__((aligned(64)));
            for (int r = 0; r < CHUNK_ROWS; r++) { /* padding is the last row again */
                int64_t row = m + r < rows ? m + r : rows - 1, token = row / s->shared;
                queries[r] = s->queries + token * s->query_stride + row % s->shared * a->head_dim;
                probabilities[r] = parts + r * KEYS;
                seen.high[r] = s->position + token + 1 - first;
                seen.low[r] = s->window ? seen.high[r] - s->window : 0;
            }
            int64_t high = seen.high[CHUNK_ROWS - 1];
            if (high <= 0 || seen.low[0] >= KEYS) continue;
            int width = high >= KEYS ? WIDTH : (int)((high + LANES - 1) / LANES);
            floats scores[CHUNK_ROWS * WIDTH];
            float factors[CHUNK_ROWS];
            product(scores, WIDTH, 0, queries, space.keys, WIDTH, depth, width);
            if (a->softcap != 0.0f)
                for (int i = 0; i < CHUNK_ROWS * WIDTH; i++)
                    if (i % WIDTH < width) scores[i] = hyperbolic_tangent(scores[i] * (a->scale / a->softcap));
            soften(scores, parts, width, m, &seen, scale, factors);
            for (int64_t v = 0; v < vectors; v += WIDTH)
                product(space.totals + m * vectors + v, vectors, factors, probabilities, space.values + v, vectors,
                        width * LANES / PACK, (int)(vectors - v < WIDTH ? vectors - v : WIDTH));
        }
    }
    for (int64_t m = 0; m < rows; m++) {
        number *out = s->out + m / s->shared * s->out_stride + m % s->shared * a->head_dim;
        floats factor = (floats){0} + 1.0f / space.weight[m];
        for (int64_t v = 0; v < vectors; v += PACK) {
            floats sums[PACK];
            for (int p = 0; p < PACK; p++) sums[p] = space.totals[m * vectors + v + p] * factor;
            store_parts(out + v * LANES, sums);
        }
    }
}
