"""Times of a layer as they were measured on a GPU: what the roofline's assumptions are held against.

Source: the profile of Vidur (Agrawal et al., "Vidur: A Large-Scale Simulation Framework for LLM Inference", MLSys
2024), github.com/microsoft/vidur at 683364e, data/profiling/compute/h100/meta-llama/Llama-2-70b-hf/mlp.csv: medians for
one of 4 tensor parallel H100s. Llama 3 70B has the same layers. Of its 290 sizes these are those at the edges of the
kernels' tiles and some between: at 256 tokens a layer takes 0.24 ms and at 264 it takes 0.38.

`PRODUCTS_MS` are the four matrix products of a layer (attn_pre_proj, attn_post_proj, mlp_up_proj, mlp_down_proj),
`OTHER_MS` what goes over the activations (two norms, rope, activation, addition). Neither has attention itself or the
all-reduces.
"""

from __future__ import annotations

from bisect import bisect_left

GPU, MODEL = "H100", "llama-3-70b"
# The head of Llama 3 is not in the profile: 128,256 x 8,192 in bf16, read once a step.
HEAD_BYTES = 2.0 * 128_256 * 8192

TOKENS = (
    *(1, 16, 32, 64, 96, 128, 160, 192, 256, 264, 288, 312, 320, 344, 384, 400, 424, 448, 512),
    *(520, 568, 600, 640, 656, 688, 944, 1024, 1056, 1152, 1232, 1536, 1664, 1808, 2688, 3072, 4096),
)
PRODUCTS_MS = (
    *(0.159, 0.1605, 0.1695, 0.170, 0.179, 0.177, 0.2075, 0.206, 0.215, 0.352, 0.3315, 0.336, 0.276, 0.3035),
    *(
        0.3225,
        0.3995,
        0.348,
        0.3345,
        0.330,
        0.5225,
        0.520,
        0.586,
        0.5475,
        0.5195,
        0.516,
        0.6845,
        0.688,
        0.7245,
    ),
    *(0.7195, 0.745, 0.882, 1.042, 1.087, 1.617, 1.913, 2.370),
)
OTHER_MS = (
    *(0.020, 0.021, 0.022, 0.021, 0.022, 0.022, 0.023, 0.023, 0.025, 0.0255, 0.039, 0.040, 0.039, 0.039),
    *(0.040, 0.042, 0.0435, 0.043, 0.045, 0.045, 0.055, 0.055, 0.057, 0.057, 0.061, 0.0815, 0.088, 0.0895),
    *(0.104, 0.113, 0.145, 0.167, 0.173, 0.271, 0.317, 0.403),
)


def layer_ms(num_tokens: int) -> float:
    """One layer of a step of this many tokens.

    Between the sizes that were measured it is interpolated, beyond the largest it is in proportion.
    """
    last = TOKENS[-1]
    if num_tokens >= last:
        return (PRODUCTS_MS[-1] + OTHER_MS[-1]) * num_tokens / last
    above = bisect_left(TOKENS, num_tokens)
    if TOKENS[above] == num_tokens or above == 0:
        return PRODUCTS_MS[above] + OTHER_MS[above]
    below = above - 1
    share = (num_tokens - TOKENS[below]) / (TOKENS[above] - TOKENS[below])
    less, more = (PRODUCTS_MS[i] + OTHER_MS[i] for i in (below, above))
    return less + share * (more - less)
