/* The small steps between products, sixteen numbers at a time. */

#pragma once

#include "vectors.h"

/* x / (1 + e^-x) */
static inline floats silu(floats x) {
    floats e = exponential((floats)((ints)x | INT32_MIN)); /* of -|x| */
    return x * chosen(x < 0.0f, e, (floats){0} + 1.0f) / (1.0f + e);
}

/* By e^(-2 |x|), to about 1e-7. */
static inline floats hyperbolic_tangent(floats x) {
    floats e = exponential(-2.0f * (floats)((ints)x & INT32_MAX));
    return (floats)((ints)((1.0f - e) / (1.0f + e)) | ((ints)x & INT32_MIN));
}

/* Gaussian error linear unit, in its approximation by tanh. */
static inline floats gelu(floats x) {
    return 0.5f * x * (1.0f + hyperbolic_tangent(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

/* 1 / sqrt(mean(x^2) + eps) */
static inline float norm_factor(const number *x, int64_t size, float eps) {
    floats squares = {0};
    for (int64_t i = 0; i < size; i += LANES) {
        floats part = load(x + i);
        squares += part * part;
    }
    return 1.0f / __builtin_sqrtf(sum(squares) / (float)size + eps);
}
