/* Attention of prompt chunks, for steps that go through torch's operators. Compiled by kernel_build.py at first use. */

#include "attend_chunk.h"

/* Queries and outputs (tokens, heads, head_dim), contiguous in out, `query_stride` numbers from token to token in
 * queries; row r owns tokens [tokens[r], tokens[r + 1]). Its token i is key positions[r] + i of the keys that begin with
 * its first block, and sees `window` keys up to itself, or all when 0. `blocks` (rows, max_blocks): block rows of layer
 * 0's keys. 0 when done, 1 when the sizes are not supported. */
int chunk_attention(number *out, const number *queries, const number *pool, const int64_t *blocks,
                    const int64_t *tokens, const int64_t *positions, int64_t rows, int64_t max_blocks,
                    int64_t layer_row, int64_t block_size, int64_t heads, int64_t kv_heads, int64_t head_dim,
                    int64_t query_stride, int64_t window, float scale) {
    int64_t shared = heads / kv_heads, row_numbers = block_size * kv_heads * head_dim;
    if (head_dim % (LANES * PACK) || head_dim > MAX_HEAD_DIM || shared > STRETCH_ROWS) return 1;
    struct attention a = {row_numbers, block_size, heads, kv_heads, head_dim, scale, 0.0f};
    int64_t most = STRETCH_ROWS / shared, num_tasks = 0;
    for (int64_t row = 0; row < rows; row++) num_tasks += (tokens[row + 1] - tokens[row] + most - 1) / most * kv_heads;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t task = 0; task < num_tasks; task++) {
        int64_t row = rows - 1, rest = task / kv_heads, head = task % kv_heads, count;
        while (count = tokens[row + 1] - tokens[row], rest >= (count + most - 1) / most)
            rest -= (count + most - 1) / most, row--;
        /* The last tokens first: they see most. */
        int64_t begin = ((count + most - 1) / most - 1 - rest) * most, token = tokens[row] + begin;
        attend_stretch(&a, &(struct stretch){
                               .queries = queries + token * query_stride + head * shared * head_dim,
                               .out = out + (token * heads + head * shared) * head_dim,
                               .query_stride = query_stride,
                               .out_stride = heads * head_dim,
                               .tokens = count - begin < most ? count - begin : most,
                               .shared = shared,
                               .position = positions[row] + begin,
                               .window = window,
                               .keys = pool + layer_row * row_numbers + head * head_dim,
                               .blocks = blocks + row * max_blocks,
                           });
    }
    return 0;
}
