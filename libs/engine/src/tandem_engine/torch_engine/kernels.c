/* Decode attention over the paged pool, for which torch has no operator, and some small steps that it would take
 * in many passes over memory. Compiled by kernels.py at first use.
 *
 * STORAGE_BFLOAT16 says what queries, keys, values and outputs are stored as; everything is summed in float32.
 * Vector types of 16 floats are GCC's and Clang's; each processor gets the instructions it has. */

#include <stdint.h>
#include <string.h>

typedef float floats __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
enum { LANES = 16, MAX_SHARED = 16, MAX_VECTORS = 16, MAX_BLOCK = 128 };
enum { PARALLEL_FROM = 16384 }; /* numbers; fewer are done before other threads are awake */

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
    ints bits = (ints)values; /* round to nearest, ties to even */
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    halves packed = __builtin_convertvector(bits, halves);
    memcpy(to, &packed, sizeof packed);
}
#else
typedef float number;

static inline floats load(const number *from) {
    floats values;
    memcpy(&values, from, sizeof values);
    return values;
}

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

/* Rows (outer, inner, size), rows of an inner stretch consecutive, stretches `stride` numbers apart; out and
 * weight contiguous: out = x / sqrt(mean(x^2) + eps) * weight. */
void rms_norm(number *out, const number *x, const number *weight, int64_t outer, int64_t inner, int64_t size,
              int64_t stride, float eps) {
#pragma omp parallel for schedule(static) if (outer * inner * size > PARALLEL_FROM)
    for (int64_t row = 0; row < outer * inner; row++) {
        const number *from = x + row / inner * stride + row % inner * size;
        floats squares = {0};
        for (int64_t i = 0; i < size; i += LANES) {
            floats part = load(from + i);
            squares += part * part;
        }
        float factor = 1.0f / __builtin_sqrtf(sum(squares) / (float)size + eps);
        for (int64_t i = 0; i < size; i += LANES)
            store(out + row * size + i, load(from + i) * factor * load(weight + i));
    }
}

/* Rows of (gate, up), each `width` wide: out = gate / (1 + e^-gate) * up. */
void silu_gate(number *out, const number *gate_up, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > PARALLEL_FROM)
    for (int64_t row = 0; row < rows; row++) {
        const number *from = gate_up + row * 2 * width;
        for (int64_t i = 0; i < width; i += LANES) {
            floats gate = load(from + i), up = load(from + width + i);
            ints negative = gate < 0.0f;
            floats e = exponential((floats)((ints)gate | INT32_MIN)); /* of -|gate| */
            floats top = (floats)(((ints)e & negative) | ((ints)((floats){0} + 1.0f) & ~negative));
            store(out + row * width + i, rounded(gate * top / (1.0f + e)) * up);
        }
    }
}

/* Heads (tokens, heads, size), tokens `stride` numbers apart; cos and sin (tokens, size): out = x * cos +
 * (x with its halves swapped) * sin. */
void rotate(number *out, const number *x, const number *cos, const number *sin, int64_t tokens, int64_t heads,
            int64_t size, int64_t stride) {
#pragma omp parallel for schedule(static) if (tokens * heads * size > PARALLEL_FROM)
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t head = 0; head < heads; head++) {
            const number *from = x + token * stride + head * size;
            number *to = out + (token * heads + head) * size;
            for (int64_t i = 0; i < size; i += LANES) {
                floats swapped = load(from + (i < size / 2 ? i + size / 2 : i - size / 2));
                floats turned = rounded(load(from + i) * load(cos + token * size + i));
                store(to + i, turned + swapped * load(sin + token * size + i));
            }
        }
}
