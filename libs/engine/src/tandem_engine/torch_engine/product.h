/* Products of few rows with a weight that lies in memory as oneDNN packs it, which serves large products. */

#pragma once

#include "packs.h"

enum { TILE = 64, TILE_VECTORS = TILE / LANES, MAX_ROWS = 6 };

/* y = x W^T + b. Tile i holds outputs [64 i, 64 i + 64): for each PACK inputs, 64 times PACK numbers. */
struct matrix {
    const number *tiles;
    const number *bias; /* or null */
    int64_t outputs, inputs;
};

/* `rows` rows by one tile. Sums stay in registers, so that each weight is loaded once for all rows: 6 by 4 of them,
 * 4 weights and an input are what 32 registers hold. In pass `pass` of `passes` over the tile it fetches its share of
 * `next` into the cache, so that memory is never idle while a tile is used again. */
static inline __attribute__((always_inline)) void multiply_block(
    float *out, const number *tile, const number *next, const number *x, int64_t inputs, int rows, int64_t pass,
    int64_t passes) {
    floats sums[MAX_ROWS][TILE_VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < TILE_VECTORS; v++) sums[r][v] = (floats){0};
    int64_t until_fetch = pass;
    for (int64_t i = 0; i < inputs; i += PACK) {
        const number *weights = tile + i * TILE;
        for (int v = 0; v < TILE_VECTORS; v++)
            for (int r = 0; r < rows; r++)
                sums[r][v] = dot(sums[r][v], load_packs(weights + v * LANES * PACK), repeated(x + r * inputs + i));
        if (passes > 1 && until_fetch-- == 0) {
            for (int v = 0; v < TILE_VECTORS; v++) __builtin_prefetch(next + i * TILE + v * LANES * PACK, 0, 2);
            until_fetch = passes - 1;
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < TILE_VECTORS; v++) memcpy(out + r * TILE + v * LANES, &sums[r][v], sizeof(floats));
}

/* x (rows, inputs) by tile number `tile`: out (rows, TILE), not rounded. Tile number `next` will follow. */
static void multiply(float *out, const struct matrix *w, int64_t tile, int64_t next, const number *x, int64_t rows) {
    int64_t inputs = w->inputs, passes = (rows + MAX_ROWS - 1) / MAX_ROWS;
    const number *numbers = w->tiles + tile * TILE * inputs, *ahead = w->tiles + next * TILE * inputs;
    for (int64_t pass = 0; pass < passes; pass++) {
        int64_t row = pass * rows / passes, end = (pass + 1) * rows / passes;
        float *to = out + row * TILE;
        const number *from = x + row * inputs;
        switch (end - row) {
#define ROWS(N) \
    case N: multiply_block(to, numbers, ahead, from, inputs, N, pass, passes); break;
            ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#undef ROWS
        }
    }
    if (!w->bias) return;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < TILE; i += LANES) {
            floats biased = load_floats(out + row * TILE + i) + load(w->bias + tile * TILE + i);
            memcpy(out + row * TILE + i, &biased, sizeof biased);
        }
}
