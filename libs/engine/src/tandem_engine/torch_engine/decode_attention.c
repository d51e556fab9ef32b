/* Attention of rows that decode, for steps that go through torch's operators. Compiled by kernel_build.py at first
 * use. */

#include "attend.h"

/* Queries and outputs (rows, heads, head_dim), contiguous in out, `query_stride` numbers from row to row in
 * queries. `blocks` (rows, max_blocks): block rows of layer 0's keys. Each row sees keys [starts, counts).
 * A row's KV heads are taken in `parts` parts, each by one thread. 0 when done, 1 when the sizes are not supported. */
int decode_attention(
    number *out, const number *queries, const number *pool, const int64_t *blocks, const int64_t *starts,
    const int64_t *counts, int64_t rows, int64_t max_blocks, int64_t layer_row, int64_t block_size,
    int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t query_stride, int64_t parts, float scale) {
    if (heads / kv_heads > MAX_SHARED || head_dim % (LANES * PACK) || head_dim > MAX_HEAD_DIM || block_size > MAX_BLOCK)
        return 1;
    int64_t row_numbers = block_size * kv_heads * head_dim;
    struct attention a = {row_numbers, block_size, heads, kv_heads, head_dim, scale, 0.0f};
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t task = 0; task < rows * parts; task++) {
        int64_t row = task / parts;
        attend(&a, out + row * heads * head_dim, queries + row * query_stride, pool + layer_row * row_numbers,
               blocks + row * max_blocks, starts[row], counts[row], task % parts, parts);
    }
    return 0;
}
