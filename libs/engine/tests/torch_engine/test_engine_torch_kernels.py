"""The kernels in C against torch's own operators, and what happens without a compiler."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from tandem_engine.torch_engine import elementwise, kernels
from tandem_engine.torch_engine.kernels import ChunkRows, Kernels, load_kernels
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def loaded(dtype: torch.dtype) -> Kernels:
    found = load_kernels(dtype)
    if found is None:
        pytest.skip("no C compiler")
    return found


def reference(queries: Tensor, pool: Tensor, blocks: list[int], layer: int, start: int, count: int) -> Tensor:
    """One row, in float64."""
    keys, values = (pool[blocks, layer, i].flatten(0, 1)[start:count].double() for i in (0, 1))
    shared = queries.shape[0] // pool.shape[4]
    keys, values = (x.repeat_interleave(shared, 1).transpose(0, 1) for x in (keys, values))
    return F.scaled_dot_product_attention(queries.double().unsqueeze(1), keys, values).squeeze(1)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "block_size"),
    [(6, 2, 64, 16), (16, 8, 128, 16), (4, 4, 32, 5), (5, 1, 96, 24), (8, 8, 128, 32), (10, 1, 256, 100)],
)
def test_decode_attention_sees_the_keys_of_its_row_and_no_others(
    loaded: Kernels,
    dtype: torch.dtype,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    num_threads: int,
) -> None:
    generator = torch.Generator().manual_seed(1)
    num_layers, max_blocks = 3, 4
    spans = [
        (0, 1),
        (0, block_size),
        (2, 2 * block_size + 1),
        (0, 4 * block_size),
        (block_size - 1, block_size),
    ]
    pool = torch.randn(
        5 * max_blocks, num_layers, 2, block_size, num_kv_heads, head_dim, generator=generator
    ).to(dtype)
    # Heads cut out of a wider row, as queries are out of the fused projection.
    wide = torch.randn(len(spans), num_heads + 3, head_dim, generator=generator).to(dtype) * 3
    queries = wide[:, :num_heads]
    tables = torch.randperm(5 * max_blocks, generator=generator).view(5, max_blocks)
    for row, (start, count) in enumerate(spans):
        for slot in range(max_blocks * block_size):
            if not start <= slot < count:  # what must not be read shows
                pool[tables[row, slot // block_size], :, :, slot % block_size] = float("nan")
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        out = loaded.decode_attention(
            queries,
            pool,
            tables * (2 * num_layers),
            torch.tensor([start for start, _ in spans]),
            torch.tensor([count for _, count in spans]),
            1,
        )
    finally:
        torch.set_num_threads(threads)
    for row, (start, count) in enumerate(spans):
        expected = reference(queries[row], pool, tables[row].tolist(), 1, start, count)
        torch.testing.assert_close(out[row].double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def chunk_reference(
    queries: Tensor, pool: Tensor, blocks: list[int], position: int, window: int, layer: int
) -> Tensor:
    """One row's new tokens (tokens, heads, head_dim), each seeing `window` keys up to itself, in float64."""
    rows = []
    for token in range(len(queries)):
        count = position + token + 1
        start = max(0, count - window) if window else 0
        rows.append(reference(queries[token], pool, blocks, layer, start, count))
    return torch.stack(rows)


@pytest.mark.parametrize("window", [0, 1, 37])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "block_size"),
    [(6, 2, 64, 16), (2, 1, 128, 16), (4, 4, 32, 5), (5, 1, 96, 24), (3, 3, 160, 32), (10, 1, 256, 100)],
)
def test_a_chunk_sees_its_row_up_to_itself_and_no_others(
    loaded: Kernels,
    dtype: torch.dtype,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    window: int,
) -> None:
    generator = torch.Generator().manual_seed(1)
    num_layers, lengths, positions = 3, (2, 7, 71, 130), (0, 3, 64, 0)
    max_blocks = max(-(-(n + p) // block_size) for n, p in zip(lengths, positions, strict=True))
    tables = torch.randperm(4 * max_blocks, generator=generator).view(4, max_blocks)
    pool = torch.randn(
        4 * max_blocks, num_layers, 2, block_size, num_kv_heads, head_dim, generator=generator
    ).to(dtype)
    for row, (length, position) in enumerate(zip(lengths, positions, strict=True)):
        for slot in range(length + position, max_blocks * block_size):  # what must not be read shows
            pool[tables[row, slot // block_size], :, :, slot % block_size] = float("nan")
    starts = [0, *accumulate(lengths)]
    # Heads cut out of a wider row, as queries are out of the fused projection; one token before is another group's.
    wide = torch.randn(1 + starts[-1], num_heads + 3, head_dim, generator=generator).to(dtype) * 2
    rows = ChunkRows(
        start=1,
        num_tokens=starts[-1],
        block_rows=tables * (2 * num_layers),
        tokens=torch.tensor(starts),
        positions=torch.tensor(positions),
        window=window,
    )
    out = loaded.chunk_attention(wide[:, :num_heads], pool, rows, 1)
    for row, position in enumerate(positions):
        own = slice(starts[row], starts[row + 1])
        expected = chunk_reference(wide[1:, :num_heads][own], pool, tables[row].tolist(), position, window, 1)
        torch.testing.assert_close(out[own].double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_scores_of_any_size_give_numbers(loaded: Kernels, dtype: torch.dtype) -> None:
    pool = torch.randn(1, 1, 2, 16, 1, 32, generator=torch.Generator().manual_seed(2)).to(dtype)
    pool[:, :, 0] *= 1e4
    queries = torch.full((1, 1, 32), 1e3, dtype=dtype)
    arguments = torch.zeros(1, 1, dtype=torch.int64), torch.tensor([0]), torch.tensor([16])
    out = loaded.decode_attention(queries, pool, *arguments, 0)
    expected = reference(queries[0], pool, [0], 0, 0, 16)
    torch.testing.assert_close(out[0].double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    chunk = ChunkRows(
        start=0,
        num_tokens=16,
        block_rows=arguments[0],
        tokens=torch.tensor([0, 16]),
        positions=torch.tensor([0]),
        window=0,
    )
    out = loaded.chunk_attention(queries.expand(16, 1, 32).contiguous(), pool, chunk, 0)
    torch.testing.assert_close(out[15].double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_sizes_that_no_kernel_fits_are_known_before_and_refused() -> None:
    sizes = {"dtype": torch.float32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "block_size": 16}
    assert Kernels.supports(**sizes)
    for changed in ({"head_dim": 24}, {"head_dim": 272}, {"block_size": 256}, {"num_heads": 64}):
        assert not Kernels.supports(**(sizes | changed))
    assert Kernels.supports(**(sizes | {"head_dim": 80}))
    assert not Kernels.supports(**(sizes | {"head_dim": 80, "dtype": torch.bfloat16}))


@pytest.mark.parametrize("rows", [1, 3, 600])
def test_small_steps_equal_those_of_torch(loaded: Kernels, dtype: torch.dtype, rows: int) -> None:
    assert loaded is not None
    generator = torch.Generator().manual_seed(rows)
    wide = (torch.randn(rows, 5, 64, generator=generator) * 4).to(dtype)
    weight = torch.randn(64, generator=generator).to(dtype)
    heads = wide[:, :3]
    tolerance = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(
        elementwise.rms_norm(heads, weight, 1e-6), F.rms_norm(heads, (64,), weight, 1e-6), **tolerance
    )
    gate_up = torch.cat((wide[:, 0] * 30, wide[:, 1]), -1)
    torch.testing.assert_close(
        elementwise.silu_gate(gate_up), F.silu(gate_up[:, :64]) * gate_up[:, 64:], **tolerance
    )
    cos, sin = (torch.randn(rows, 1, 64, generator=generator).to(dtype) for _ in range(2))
    torch.testing.assert_close(
        elementwise.rotate(heads, cos, sin),
        torch.addcmul(heads * cos, heads.roll(32, -1), sin),
        **tolerance,
    )


def test_sizes_that_no_kernel_fits_go_to_torch() -> None:
    x = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(elementwise.silu_gate(x), F.silu(x[:, :10]) * x[:, 10:])
    torch.testing.assert_close(
        elementwise.rms_norm(x, torch.ones(20), 1e-6), F.rms_norm(x, (20,), None, 1e-6)
    )


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_working_compiler_there_are_no_kernels(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_kernels.__wrapped__(torch.float32) is None


def test_a_cache_directory_that_others_can_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory = tmp_path / "tandem" / "kernels"
    directory.mkdir(parents=True)
    directory.chmod(0o777)
    assert load_kernels.__wrapped__(torch.float32) is None
    assert not list(directory.iterdir())


def test_a_compiled_library_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: Kernels
) -> None:
    assert loaded is not None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_kernels.__wrapped__(torch.float32) is not None
    (library,) = (tmp_path / "tandem" / "kernels").iterdir()
    made = library.stat().st_mtime_ns
    assert load_kernels.__wrapped__(torch.float32) is not None
    assert library.stat().st_mtime_ns == made
    assert kernels.LANES == 16
