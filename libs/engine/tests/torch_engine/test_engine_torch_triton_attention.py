"""Triton's kernels for decoding give what plain attention gives. Run on a CPU by Triton's interpreter:

    pip install triton==3.7.1
    TRITON_INTERPRET=1 python -m pytest libs/engine/tests/torch_engine/test_engine_torch_triton_attention.py

or on a GPU, where the same test takes the compiled kernels. Without the variable and a GPU they are only compiled.
"""

from __future__ import annotations

import os

import pytest
import torch
from tandem_engine.torch_engine.paged_rows import PagedRows

# The interpreter does not know products of bfloat16.
DTYPES = [torch.float32, torch.bfloat16 if torch.cuda.is_available() else torch.float16]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="triton is not installed; docs/models.md says how to run this")
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

from tandem_engine.torch_engine import triton_attention  # noqa: E402
from tandem_engine.torch_engine.triton_attention import TritonAttention  # noqa: E402


@pytest.mark.skipif(
    DEVICE == "cpu" and not IS_INTERPRETED, reason="without a GPU this needs TRITON_INTERPRET=1"
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size", "window", "softcap", "num_processors"),
    [
        (4, 2, 64, 16, 0, 0.0, 132),
        (8, 1, 128, 16, 0, 0.0, 1),  # one stretch for all keys
        (3, 3, 24, 8, 0, 0.0, 40),  # sizes that are no powers of two
        (4, 2, 32, 8, 70, 0.0, 132),
        (4, 2, 32, 16, 7, 5.0, 10),
        (2, 1, 256, 32, 0, 3.0, 16),
    ],
)
def test_the_kernels_compute_attention_in_place(
    dtype, heads, kv_heads, head_dim, block_size, window, softcap, num_processors, attend_plainly
):
    generator = torch.Generator().manual_seed(heads * head_dim)
    positions = [0, 1, block_size - 1, block_size, 63, 64, 200]
    num_blocks = sum(position // block_size + 1 for position in positions)
    shuffled = torch.randperm(num_blocks + 3, generator=generator)[:num_blocks]
    pool = torch.full((num_blocks + 3, 2, 2, block_size, kv_heads, head_dim), float("nan"), dtype=dtype)
    tables, blocks = [], []
    for position in positions:
        tables.append(len(blocks))
        own = shuffled[len(blocks) : len(blocks) + position // block_size + 1].tolist()
        for place, block in enumerate(own):
            # What lies behind the last token stays NaN.
            num_slots = min(block_size, position + 1 - place * block_size)
            pool[block, 1, :, :num_slots] = torch.randn(
                2, num_slots, kv_heads, head_dim, generator=generator
            ).to(dtype)
        blocks += own
    # Rows of queries are further apart than their heads are long: keys lie between them.
    queries = torch.randn(len(positions), heads + kv_heads, head_dim, generator=generator).to(dtype)
    rows = PagedRows(
        start=0,
        blocks=torch.tensor(blocks, device=DEVICE),
        tables=torch.tensor(tables, device=DEVICE),
        positions=torch.tensor(positions, device=DEVICE),
        window=window,
    )
    pool, queries = pool.to(DEVICE), queries.to(DEVICE)[:, :heads]
    out = TritonAttention(num_processors)(queries, pool, rows, 1, softcap)
    expected = attend_plainly(queries, pool, rows, 1, softcap)
    tolerance = 1e-5 if dtype is torch.float32 else 0.02
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)


def test_few_rows_are_split_further_than_many():
    attention = TritonAttention(132)
    assert attention.num_splits(1, 8) == 64
    assert attention.num_splits(16, 8) == 4
    assert attention.num_splits(64, 8) == 1
    assert attention.num_splits(1, 1) == 64


@pytest.mark.skipif(IS_INTERPRETED, reason="nothing is compiled under TRITON_INTERPRET=1")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "head_dim", "window", "softcap"),
    [("bf16", 128, 0, 0.0), ("bf16", 256, 4096, 50.0), ("fp32", 96, 0, 0.0)],
)
def test_the_kernels_compile_without_a_gpu(capability, dtype, head_dim, window, softcap):
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    stretch = {
        **dict.fromkeys(("parts", "log_sums"), "*fp32"),
        **dict.fromkeys(("queries", "keys", "values"), f"*{dtype}"),
        **dict.fromkeys(("blocks", "tables", "positions"), "*i64"),
        **dict.fromkeys(("query_stride", "block_stride"), "i32"),
        "scale": "fp32",
    }
    sizes = {"DIM": head_dim, "PADDED_DIM": 256 if head_dim > 128 else 128, "SPLITS": 32}
    shape = {"BLOCK_SIZE": 16, "KV_HEADS": 8, "SHARED": 4, "HEADS": 16, "TILE": 32 if head_dim > 128 else 64}
    for kernel, types, constants in (
        (triton_attention._attend_stretch, stretch, sizes | shape | {"WINDOW": window, "SOFTCAP": softcap}),
        (triton_attention._add_parts, {"out": f"*{dtype}", "parts": "*fp32", "log_sums": "*fp32"}, sizes),
    ):
        signature = types | dict.fromkeys(constants, "constexpr")
        source = ASTSource(
            fn=kernel, signature={name: signature[name] for name in kernel.arg_names}, constexprs=constants
        )
        compiled = compile_kernel(source, target=GPUTarget("cuda", capability, 32))
        assert compiled.metadata.shared < 100 << 10  # bytes that a program has at its own, on either
