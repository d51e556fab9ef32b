/* Small steps that torch would take in many passes over memory. Compiled by kernel_build.py at first use. */

#include "elementwise.h"

/* Rows (outer, inner, size), rows of an inner stretch consecutive, stretches `stride` numbers apart; out and
 * weight contiguous: out = x / sqrt(mean(x^2) + eps) * weight. */
void rms_norm(number *out, const number *x, const number *weight, int64_t outer, int64_t inner, int64_t size,
              int64_t stride, float eps) {
#pragma omp parallel for schedule(static) if (outer * inner * size > PARALLEL_FROM)
    for (int64_t row = 0; row < outer * inner; row++) {
        const number *from = x + row / inner * stride + row % inner * size;
        float factor = norm_factor(from, size, eps);
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
            store(out + row * width + i, rounded(silu(load(from + i))) * load(from + width + i));
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
