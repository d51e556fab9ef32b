"""Times of a layer as they were measured on a GPU: what the roofline's assumptions are held against.

Source: the profile of Vidur (Agrawal et al., "Vidur: A Large-Scale Simulation Framework for LLM Inference", MLSys
2024), github.com/microsoft/vidur at 683364e, data/profiling/compute/h100/meta-llama/Llama-2-70b-hf/mlp.csv: medians for
one of 4 tensor parallel H100s. Llama 3 70B has the same layers. Of its 290 sizes these are those at the edges of the
kernels' tiles and some between: at 256 tokens a layer takes 0.24 ms and at 264 it takes 0.38.

*Products* are the four matrix products of a layer (attn_pre_proj, attn_post_proj, mlp_up_proj, mlp_down_proj), *other*
is what goes over the activations (two norms, rope, activation, addition). Attention itself and the all-reduces are in
neither.
"""

from __future__ import annotations

from bisect import bisect_left

GPU, MODEL = "H100", "llama-3-70b"
# The head of Llama 3 is not in the profile: 128,256 x 8,192 in bf16, read once a step.
HEAD_BYTES = 2.0 * 128_256 * 8192

# Tokens, products, other.
LAYER_MS = (
    (1, 0.159, 0.02),
    (16, 0.1605, 0.021),
    (32, 0.1695, 0.022),
    (64, 0.17, 0.021),
    (72, 0.181, 0.021),
    (96, 0.179, 0.022),
    (104, 0.177, 0.022),
    (128, 0.177, 0.022),
    (136, 0.213, 0.023),
    (152, 0.206, 0.023),
    (160, 0.2075, 0.023),
    (192, 0.206, 0.023),
    (200, 0.219, 0.025),
    (256, 0.215, 0.025),
    (264, 0.352, 0.025),
    (272, 0.331, 0.0355),
    (288, 0.3315, 0.039),
    (304, 0.3205, 0.0385),
    (312, 0.336, 0.04),
    (320, 0.276, 0.039),
    (328, 0.304, 0.039),
    (344, 0.3035, 0.039),
    (368, 0.31, 0.04),
    (376, 0.285, 0.039),
    (384, 0.3225, 0.04),
    (392, 0.401, 0.041),
    (400, 0.3995, 0.042),
    (424, 0.348, 0.0435),
    (448, 0.3345, 0.043),
    (512, 0.33, 0.045),
    (520, 0.5225, 0.045),
    (568, 0.52, 0.055),
    (600, 0.586, 0.055),
    (640, 0.5475, 0.057),
    (656, 0.5195, 0.057),
    (688, 0.516, 0.061),
    (944, 0.6845, 0.0815),
    (1024, 0.688, 0.088),
    (1056, 0.7245, 0.0895),
    (1152, 0.7195, 0.104),
    (1232, 0.745, 0.113),
    (1536, 0.882, 0.145),
    (1664, 1.042, 0.167),
    (1808, 1.087, 0.173),
    (2688, 1.617, 0.271),
    (3072, 1.913, 0.317),
    (4096, 2.37, 0.403),
)
TOKENS = tuple(num_tokens for num_tokens, _, _ in LAYER_MS)


def layer_ms(num_tokens: int) -> float:
    """One layer of a step of this many tokens.

    Between the sizes that were measured it is interpolated, beyond the largest it is in proportion.
    """
    last = TOKENS[-1]
    if num_tokens >= last:
        return _measured_ms(-1) * num_tokens / last
    above = bisect_left(TOKENS, num_tokens)
    if TOKENS[above] == num_tokens or above == 0:
        return _measured_ms(above)
    below = above - 1
    share = (num_tokens - TOKENS[below]) / (TOKENS[above] - TOKENS[below])
    less, more = _measured_ms(below), _measured_ms(above)
    return less + share * (more - less)


def _measured_ms(position: int) -> float:
    _, products_ms, other_ms = LAYER_MS[position]
    return products_ms + other_ms
