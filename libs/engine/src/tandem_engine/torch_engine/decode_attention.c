/* Decode attention over the paged pool, for which torch has no operator. Compiled by kernel_build.py at first use. */

#include "vectors.h"

enum { MAX_SHARED = 16, MAX_VECTORS = 16, MAX_BLOCK = 128 };

/* What a KV head's queries know so far: a streaming softmax (Milakov and Gimelshein 2018). */
struct state {
    floats query[MAX_SHARED * MAX_VECTORS], total[MAX_SHARED * MAX_VECTORS];
    float highest[MAX_SHARED], weight[MAX_SHARED];
};

/* One KV head of one block: slots [begin, end) of `keys` and `values`, whose tokens lie `stride` numbers apart. */
static inline __attribute__((always_inline)) void attend_block(
    struct state *state, const number *keys, const number *values, int64_t begin, int64_t end, int64_t stride,
    int shared, int vectors) {
    float scores[MAX_SHARED][MAX_BLOCK] __attribute__((aligned(64)));
    int64_t padded = (end + LANES - 1) / LANES * LANES;
    for (int s = 0; s < shared; s++)
        for (int64_t t = 0; t < padded; t++) scores[s][t] = -3.4e38f;
    for (int64_t t = begin; t < end; t++) {
        floats dot[MAX_SHARED];
        for (int s = 0; s < shared; s++) dot[s] = (floats){0};
        for (int v = 0; v < vectors; v++) {
            floats key = load(keys + t * stride + v * LANES);
            for (int s = 0; s < shared; s++) dot[s] += state->query[s * vectors + v] * key;
        }
        for (int s = 0; s < shared; s++) scores[s][t] = sum(dot[s]);
    }
    floats total[MAX_SHARED][MAX_VECTORS];
    for (int s = 0; s < shared; s++) {
        float top = state->highest[s];
        for (int64_t t = begin; t < end; t++) top = scores[s][t] > top ? scores[s][t] : top;
        floats factor = exponential((floats){0} + (state->highest[s] - top));
        floats added = {0};
        for (int64_t t = 0; t < padded; t += LANES) {
            floats part;
            memcpy(&part, &scores[s][t], sizeof part);
            part = exponential(part - top);
            added += part;
            memcpy(&scores[s][t], &part, sizeof part);
        }
        state->highest[s] = top;
        state->weight[s] = state->weight[s] * factor[0] + sum(added);
        for (int v = 0; v < vectors; v++) total[s][v] = state->total[s * vectors + v] * factor;
    }
    for (int64_t t = begin; t < end; t++)
        for (int v = 0; v < vectors; v++) {
            floats value = load(values + t * stride + v * LANES);
            for (int s = 0; s < shared; s++) total[s][v] += value * scores[s][t];
        }
    for (int s = 0; s < shared; s++)
        for (int v = 0; v < vectors; v++) state->total[s * vectors + v] = total[s][v];
}

/* Sizes that are known to the compiler stay in registers. */
static void attend_any(struct state *state, const number *keys, const number *values, int64_t begin, int64_t end,
                       int64_t stride, int shared, int vectors) {
#define KNOWN(SHARED, VECTORS)                                                                                \
    if (shared == SHARED && vectors == VECTORS)                                                               \
        attend_block(state, keys, values, begin, end, stride, SHARED, VECTORS);                               \
    else
    KNOWN(1, 8) KNOWN(2, 8) KNOWN(4, 8) KNOWN(1, 4) KNOWN(2, 4) KNOWN(3, 4) KNOWN(4, 4) KNOWN(8, 4)
        attend_block(state, keys, values, begin, end, stride, shared, vectors);
#undef KNOWN
}

/* Queries and outputs (rows, heads, head_dim), contiguous in out, `query_stride` numbers from row to row in
 * queries. `blocks` (rows, max_blocks): block rows of layer 0's keys. Each row sees keys [starts, counts).
 * A row's KV heads are taken in `parts` parts, each by one thread that walks through the blocks once, so that
 * memory is read in long stretches. 0 when done, 1 when the sizes are not supported. */
int decode_attention(
    number *out, const number *queries, const number *pool, const int64_t *blocks, const int64_t *starts,
    const int64_t *counts, int64_t rows, int64_t max_blocks, int64_t layer_row, int64_t block_size,
    int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t query_stride, int64_t parts, float scale) {
    int64_t shared = heads / kv_heads, vectors = head_dim / LANES, stride = kv_heads * head_dim;
    if (shared > MAX_SHARED || head_dim % LANES || vectors > MAX_VECTORS || block_size > MAX_BLOCK)
        return 1;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t task = 0; task < rows * parts; task++) {
        int64_t row = task / parts, part = task % parts;
        int64_t first_head = part * kv_heads / parts, num_heads = (part + 1) * kv_heads / parts - first_head;
        struct state states[num_heads > 0 ? num_heads : 1];
        for (int64_t h = 0; h < num_heads; h++) {
            const number *query = queries + row * query_stride + (first_head + h) * shared * head_dim;
            for (int64_t v = 0; v < shared * vectors; v++) {
                states[h].query[v] = load(query + v * LANES) * scale;
                states[h].total[v] = (floats){0};
            }
            for (int64_t s = 0; s < shared; s++) states[h].highest[s] = -3.4e38f, states[h].weight[s] = 0;
        }
        for (int64_t block = starts[row] / block_size; block * block_size < counts[row]; block++) {
            int64_t base = block * block_size;
            int64_t begin = starts[row] > base ? starts[row] - base : 0;
            int64_t end = counts[row] - base < block_size ? counts[row] - base : block_size;
            const number *keys = pool + (blocks[row * max_blocks + block] + layer_row) * block_size * stride;
            for (int64_t h = 0; h < num_heads; h++) {
                const number *own = keys + (first_head + h) * head_dim;
                attend_any(&states[h], own, own + block_size * stride, begin, end, stride, (int)shared,
                           (int)vectors);
            }
        }
        for (int64_t h = 0; h < num_heads; h++)
            for (int64_t s = 0; s < shared; s++)
                for (int64_t v = 0; v < vectors; v++)
                    store(out + ((row * heads + (first_head + h) * shared + s) * vectors + v) * LANES,
                          states[h].total[s * vectors + v] * (1.0f / states[h].weight[s]));
    }
    return 0;
}
