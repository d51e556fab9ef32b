/* Attention of prompt chunks over the paged pool: scores stay in the caches (FlashAttention; Dao et al. 2022), keys
 * and values are read where they lie, and what a chunk's queries must not see is not computed. Compiled by
 * kernel_build.py at first use.
 *
 * Both products, of queries with keys and of probabilities with values, are sums over 32-bit elements: pairs of
 * bfloat16 where the processor multiplies these, else float32. */

#include "vectors.h"

/* Scores of hidden keys, and the highest of a row that has met none: scaled or not, the former stay far below. */
static const float HIDDEN = -1e37f, NOTHING = -1e30f;

enum {
    ROWS = 6,              /* of a tile: with 4 vectors each they fill the registers */
    WIDTH = 4,             /* vectors in a tile's row */
    KEYS = WIDTH * LANES,  /* scores in a tile's row */
    MOST_ROWS = 32 * ROWS, /* that share one packing of keys and values */
    MOST_NUMBERS = 128 * MOST_ROWS,
    MOST_DIMS = 256,
};

#if defined(STORAGE_BFLOAT16) && defined(__AVX512BF16__)
enum { PAIR = 2 }; /* numbers in an element */
typedef int32_t element;
typedef ints elements;

static inline floats multiply_add(floats sum, element a, elements b) {
    return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)b);
}

/* Up to 16 elements from consecutive numbers, the others 0. */
static inline elements load_elements(const number *from, int64_t numbers) {
    elements found = {0};
    if (numbers >= LANES * PAIR)
        memcpy(&found, from, sizeof found);
    else
        memcpy(&found, from, (size_t)numbers * sizeof *from);
    return found;
}

/* 16 elements of two numbers each: one of `first` and one of `second`. */
static inline elements join(const number *first, const number *second) {
    return ((elements)load(first) >> 16 & 0xffff) | (elements)load(second);
}

/* The row's vector number `at`. */
static inline void store_elements(element *row, int at, floats values) { store((number *)row + at * LANES, values); }
#else
enum { PAIR = 1 };
typedef float element;
typedef floats elements;

static inline floats multiply_add(floats sum, element a, elements b) { return sum + a * b; }
static inline elements load_elements(const number *from, int64_t numbers) { return load(from); }
static inline elements join(const number *first, const number *second) { return load(first); }
static inline void store_elements(element *row, int at, floats values) { memcpy(row + at * LANES, &values, sizeof values); }
#endif

/* One thread's workspace; kept from call to call, so that its memory is there already. */
static _Thread_local struct {
    element queries[MOST_NUMBERS];         /* (rows, elements of a head) */
    floats totals[MOST_NUMBERS / LANES];   /* (rows, head_dim) */
    elements keys[MOST_DIMS * WIDTH];      /* (elements of a head, KEYS) */
    elements values[KEYS * MOST_DIMS / LANES]; /* (KEYS in elements, head_dim) */
    float highest[MOST_ROWS], weight[MOST_ROWS];
} space __attribute__((aligned(64)));

/* One row of the batch as seen by one KV head. */
struct source {
    const number *pool;      /* of the layer and the head */
    const int64_t *blocks;   /* where the row's blocks begin, in block rows */
    int64_t block_size, stride; /* tokens of a block, numbers from token to token */
};

/* Where keys [first, first + count) lie. */
static inline void find_keys(const struct source *source, int64_t first, int64_t count, const number **key) {
    int64_t block = first / source->block_size, slot = first % source->block_size;
    for (int64_t k = 0; k < count; k++) {
        key[k] = source->pool + (source->blocks[block] * source->block_size + slot) * source->stride;
        if (++slot == source->block_size) block++, slot = 0;
    }
}

#define EXCHANGE(STEP, LOW, HIGH)                                                                             \
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) if (!(i & STEP)) {                               \
        elements a = rows[i], b = rows[i + STEP];                                                             \
        rows[i] = SHUFFLE(a, b, LOW);                                                                         \
        rows[i + STEP] = SHUFFLE(a, b, HIGH);                                                                 \
    }
#define COMMA ,

/* Rows become columns. */
static inline void transpose(elements rows[LANES]) {
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

/* Keys [first, first + count) as columns, their values in rows of elements; what is missing of KEYS is 0. */
static void pack(const struct source *source, int64_t first, int64_t count, int64_t head_dim) {
    int64_t depth = (head_dim + PAIR - 1) / PAIR, vectors = head_dim / LANES;
    const number *key[KEYS];
    find_keys(source, first, count, key);
    for (int w = 0; w < WIDTH; w++)
        for (int64_t d = 0; d < depth; d += LANES) {
            elements rows[LANES];
            for (int i = 0; i < LANES; i++)
                rows[i] = w * LANES + i < count ? load_elements(key[w * LANES + i] + d * PAIR, head_dim - d * PAIR)
                                                : (elements){0};
            transpose(rows);
            for (int i = 0; i < LANES && d + i < depth; i++) space.keys[(d + i) * WIDTH + w] = rows[i];
        }
    static const number nothing[MOST_DIMS];
    int64_t to_values = source->block_size * source->stride;
    for (int64_t k = 0; k < KEYS; k += PAIR) {
        const number *value = k < count ? key[k] + to_values : nothing;
        const number *next = k + PAIR - 1 < count ? key[k + PAIR - 1] + to_values : nothing;
        for (int64_t v = 0; v < vectors; v++)
            space.values[k / PAIR * vectors + v] = join(value + v * LANES, next + v * LANES);
    }
}

/* sums (ROWS, width) = sums * factors + a (ROWS, depth) b (depth, width); without factors, the product alone.
 * Rows lie `sum_stride`, `a_stride` and `b_stride` apart, counted in what they are made of. */
static inline __attribute__((always_inline)) void product_of(
    floats *restrict sums, int64_t sum_stride, const float *factors, const element *restrict a, int64_t a_stride,
    const elements *restrict b, int64_t b_stride, int64_t depth, int width) {
    floats total[ROWS][WIDTH];
    for (int r = 0; r < ROWS; r++)
        for (int w = 0; w < width; w++)
            total[r][w] = factors ? sums[r * sum_stride + w] * factors[r] : (floats){0};
    for (int64_t d = 0; d < depth; d++) {
        elements right[WIDTH];
        for (int w = 0; w < width; w++) right[w] = b[d * b_stride + w];
        for (int r = 0; r < ROWS; r++)
            for (int w = 0; w < width; w++) total[r][w] = multiply_add(total[r][w], a[r * a_stride + d], right[w]);
    }
    for (int r = 0; r < ROWS; r++)
        for (int w = 0; w < width; w++) sums[r * sum_stride + w] = total[r][w];
}

static void product(floats *sums, int64_t sum_stride, const float *factors, const element *a, int64_t a_stride,
                    const elements *b, int64_t b_stride, int64_t depth, int width) {
    /* Sizes that are known to the compiler stay in registers. */
#define KNOWN(N)                                                                                              \
    case N:                                                                                                   \
        if (factors)                                                                                          \
            product_of(sums, sum_stride, factors, a, a_stride, b, b_stride, depth, N);                        \
        else                                                                                                  \
            product_of(sums, sum_stride, 0, a, a_stride, b, b_stride, depth, N);                              \
        break;
    switch (width) { KNOWN(1) KNOWN(2) KNOWN(3) KNOWN(4) }
#undef KNOWN
}

/* Keys [low, high) of a tile's, by row. */
struct seen {
    int64_t low[ROWS], high[ROWS];
};

/* Hides a row's scores (width vectors) but for the keys [low, high); the largest that is left. */
static inline float hide(floats *scores, int width, int64_t low, int64_t high) {
    static const ints numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    floats top = {0};
    top += HIDDEN;
    for (int w = 0; w < width; w++) {
        if (low > w * LANES || high < (w + 1) * LANES) {
            ints number = numbers + w * LANES;
            scores[w] = chosen((number >= (int32_t)low) & (number < (int32_t)high), scores[w], (floats){0} + HIDDEN);
        }
        top = larger(top, scores[w]);
    }
    return largest(top);
}

/* Scores (ROWS, width) of the rows from `row` on, of which `seen` tells what each row sees, to probabilities in
 * elements: powers of 2 of the scores times `scale`. What the rows knew so far counts `factors` from now on. */
static inline void soften(floats *scores, element *out, int width, int64_t row, const struct seen *seen, float scale,
                          float *factors) {
    floats highest = {0}, known = {0};
    for (int r = 0; r < ROWS; r++) {
        known[r] = space.highest[row + r];
        highest[r] = hide(scores + r * WIDTH, width, seen->low[r], seen->high[r]) * scale;
    }
    highest = larger(highest, known);
    floats factor = power_of_two(known - highest);
    for (int r = 0; r < ROWS; r++) {
        floats added = {0};
        for (int w = 0; w < width; w++) {
            floats part = power_of_two(scores[r * WIDTH + w] * scale - highest[r]);
            added += part;
            store_elements(out + r * KEYS, w, part);
        }
        factors[r] = factor[r];
        space.highest[row + r] = highest[r];
        space.weight[row + r] = space.weight[row + r] * factor[r] + sum(added);
    }
}

/* What tells one stretch of queries of one row under one KV head. */
struct stretch {
    const number *queries; /* the first query's first head that shares the KV head */
    number *out;
    int64_t query_stride, out_stride; /* numbers from token to token */
    int64_t count, shared;            /* queries, and heads that share the KV head */
    int64_t position;                 /* key of the first query itself */
    int64_t window, head_dim;
    float scale;
};

static void attend(const struct stretch *s, const struct source *source) {
    int64_t depth = (s->head_dim + PAIR - 1) / PAIR, vectors = s->head_dim / LANES;
    int64_t rows = s->count * s->shared, padded = (rows + ROWS - 1) / ROWS * ROWS;
    for (int64_t m = 0; m < padded; m++) {
        const number *query = s->queries + m / s->shared * s->query_stride + m % s->shared * s->head_dim;
        for (int64_t d = 0; d < depth; d += LANES) {
            elements part = m < rows ? load_elements(query + d * PAIR, s->head_dim - d * PAIR) : (elements){0};
            memcpy(space.queries + m * depth + d, &part, (depth - d < LANES ? depth - d : LANES) * sizeof(element));
        }
        for (int64_t v = 0; v < vectors; v++) space.totals[m * vectors + v] = (floats){0};
        space.highest[m] = NOTHING, space.weight[m] = 0;
    }
    int64_t begin = s->window && s->position >= s->window ? s->position + 1 - s->window : 0;
    int64_t end = s->position + s->count;
    for (int64_t first = begin / KEYS * KEYS; first < end; first += KEYS) {
        pack(source, first, end - first < KEYS ? end - first : KEYS, s->head_dim);
        for (int64_t m = 0; m < padded; m += ROWS) {
            /* Seen by the tile's rows together, counted from `first`. */
            int64_t last = m + ROWS - 1 < rows ? m + ROWS - 1 : rows - 1;
            int64_t high = s->position + last / s->shared + 1 - first;
            int64_t low = s->window ? s->position + m / s->shared + 1 - s->window - first : 0;
            if (high <= 0 || low >= KEYS) continue;
            int width = high >= KEYS ? WIDTH : (int)((high + LANES - 1) / LANES);
            floats scores[ROWS * WIDTH];
            element parts[ROWS * KEYS] __attribute__((aligned(64)));
            float factors[ROWS];
            product(scores, WIDTH, 0, space.queries + m * depth, depth, space.keys, WIDTH, depth, width);
            struct seen seen;
            for (int r = 0; r < ROWS; r++) {
                seen.high[r] = s->position + (m + r < rows ? m + r : rows - 1) / s->shared + 1 - first;
                seen.low[r] = s->window ? seen.high[r] - s->window : 0;
            }
            soften(scores, parts, width, m, &seen, s->scale, factors);
            for (int64_t v = 0; v < vectors; v += WIDTH)
                product(space.totals + m * vectors + v, vectors, factors, parts, KEYS, space.values + v, vectors,
                        width * LANES / PAIR, (int)(vectors - v < WIDTH ? vectors - v : WIDTH));
        }
    }
    for (int64_t m = 0; m < rows; m++)
        for (int64_t v = 0; v < vectors; v++)
            store(s->out + m / s->shared * s->out_stride + m % s->shared * s->head_dim + v * LANES,
                  space.totals[m * vectors + v] * (1.0f / space.weight[m]));
}

/* Queries and outputs (tokens, heads, head_dim), contiguous in out, `query_stride` numbers from token to token in
 * queries; row r owns tokens [tokens[r], tokens[r + 1]). Its token i is key positions[r] + i of the keys that begin with
 * its first block, and sees `window` keys up to itself, or all when 0. `blocks` (rows, max_blocks): block rows of layer
 * 0's keys. 0 when done, 1 when the sizes are not supported. */
int chunk_attention(number *out, const number *queries, const number *pool, const int64_t *blocks,
                    const int64_t *tokens, const int64_t *positions, int64_t rows, int64_t max_blocks,
                    int64_t layer_row, int64_t block_size, int64_t heads, int64_t kv_heads, int64_t head_dim,
                    int64_t query_stride, int64_t window, float scale) {
    int64_t shared = heads / kv_heads, stride = kv_heads * head_dim;
    if (head_dim % LANES || head_dim > MOST_DIMS || shared > MOST_NUMBERS / head_dim) return 1;
    int64_t most_rows = MOST_NUMBERS / head_dim < MOST_ROWS ? MOST_NUMBERS / head_dim / ROWS * ROWS : MOST_ROWS;
    int64_t most = most_rows / shared, num_tasks = 0;
    for (int64_t row = 0; row < rows; row++) num_tasks += (tokens[row + 1] - tokens[row] + most - 1) / most * kv_heads;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t task = 0; task < num_tasks; task++) {
        int64_t row = rows - 1, rest = task / kv_heads, head = task % kv_heads, count;
        /* The last queries first: they see most. */
        while (count = tokens[row + 1] - tokens[row], rest >= (count + most - 1) / most)
            rest -= (count + most - 1) / most, row--;
        int64_t begin = ((count + most - 1) / most - 1 - rest) * most, token = tokens[row] + begin;
        attend(
            &(struct stretch){
                .queries = queries + token * query_stride + head * shared * head_dim,
                .out = out + (token * heads + head * shared) * head_dim,
                .query_stride = query_stride,
                .out_stride = heads * head_dim,
                .count = count - begin < most ? count - begin : most,
                .shared = shared,
                .position = positions[row] + begin,
                .window = window,
                .head_dim = head_dim,
                .scale = scale * 1.44269504f, /* e^x as a power of 2 */
            },
            &(struct source){
                .pool = pool + layer_row * block_size * stride + head * head_dim,
                .blocks = blocks + row * max_blocks,
                .block_size = block_size,
                .stride = stride,
            });
    }
    return 0;
}
