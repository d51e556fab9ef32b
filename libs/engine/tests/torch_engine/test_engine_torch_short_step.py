"""Steps in one call in C give what the model gives by torch's operators."""

from __future__ import annotations

import dataclasses
import gc
import random
from dataclasses import dataclass, field

import pytest
import torch
from tandem_common.generation import SamplingParams, StoppingParams
from tandem_engine.batch import Batch, ScheduledSequence
from tandem_engine.torch_engine.embeddings import Embeddings
from tandem_engine.torch_engine.kernels import load_kernels
from tandem_engine.torch_engine.kv_cache import KVCache
from tandem_engine.torch_engine.linear import TILE, Linear, has_tiles
from tandem_engine.torch_engine.model import Transformer
from tandem_engine.torch_engine.model_config import load_model_config
from tandem_engine.torch_engine.rope import LayerRotations
from tandem_engine.torch_engine.short_step import ShortStep
from tandem_engine.torch_engine.step_inputs import make_step_inputs
from tandem_engine.torch_engine.weights import Weights

BLOCK_SIZE = 8
NUM_BLOCKS = 120
FITTING = [
    "llama-wide",
    "llama-biases-wide",
    "mistral-wide",
    "qwen2-wide",
    "qwen3-wide",
    "gemma2-wide",
    "gemma3-wide",
    "phi3-wide",
]
DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if has_tiles(dtype, "cpu")]

pytestmark = pytest.mark.skipif(not DTYPES, reason="no C compiler, or weights are not packed in tiles here")


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@dataclass
class Both:
    """One model over two pools: one for the kernel, one for torch's operators."""

    short: ShortStep
    model: Transformer
    caches: tuple[KVCache, KVCache]
    windows: frozenset[int]
    dtype: torch.dtype
    known: list[list[int]] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)
    blocks: list[list[int]] = field(default_factory=list)

    def begin(self, prompt):
        """Another sequence, with shuffled blocks of its own."""
        index = len(self.known)
        own = list(range(12 * index, 12 * index + 12))
        random.Random(index).shuffle(own)
        self.known.append(list(prompt))
        self.computed.append(0)
        self.blocks.append(own)

    def batch(self, new):
        """So many new tokens of each sequence."""
        rows = []
        for index, count in enumerate(new):
            if count:
                rows.append(
                    ScheduledSequence(
                        request_id=f"r{index}",
                        token_ids=self.known[index],
                        num_computed_tokens=self.computed[index],
                        num_new_tokens=count,
                        block_ids=self.blocks[index],
                        num_prompt_tokens=1,
                        sampling=SamplingParams(temperature=0.0),
                        stopping=StoppingParams(max_tokens=99),
                        draws_token=self.computed[index] + count == len(self.known[index]),
                    )
                )
                self.computed[index] += count
        return Batch(rows)

    @torch.inference_mode()
    def by_torch(self, batch):
        cache = self.caches[1]
        inputs = make_step_inputs(batch, cache, self.windows, self.dtype)
        cache.clear(inputs.begun_blocks)
        logits = self.model(inputs, cache)
        return logits[sorted(range(len(inputs.drawing)), key=inputs.drawing.__getitem__)]

    @torch.inference_mode()
    def by_kernel(self, batch):
        return self.short.logits(batch)


@torch.inference_mode()
def load_both(path, dtype, *, has_kernels=True):
    config = load_model_config(path)
    with Weights(path, dtype=dtype, device="cpu") as weights:
        model = Transformer(config, weights, LayerRotations(config, 256, dtype, "cpu"))
    caches = [
        KVCache(
            config,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            dtype=dtype,
            device="cpu",
            kernels=load_kernels(dtype) if has_kernels and not config.attention_softcap else None,
        )
        for _ in range(2)
    ]
    for cache in caches:
        cache.poison(range(NUM_BLOCKS))  # what must not be read shows
    assert ShortStep.fits(model, config, caches[0])
    return Both(
        short=ShortStep(model, config, caches[0]),
        model=model,
        caches=(caches[0], caches[1]),
        windows=frozenset(config.windows),
        dtype=dtype,
    )


@pytest.mark.parametrize("name", FITTING)
def test_logits_are_those_of_torch(name, dtype, tiny_model, random_prompt):
    both = load_both(tiny_model(name).path, dtype)
    for index, length in enumerate((1, 9, 16, 40)):
        both.begin(random_prompt(length, seed=index))
    # Whole prompts and chunks of them, some not to their ends; then decodes, alone and together.
    for new in ((1, 9, 5, 0), (0, 0, 11, 13), (0, 0, 0, 16), (0, 0, 0, 11)):
        batch = both.batch(new)
        ours, expected = both.by_kernel(batch), both.by_torch(batch)
        assert_equal_but_for_rounding(ours, expected, dtype)
    for step in range(20):
        decoding = [(step + index) % 3 > 0 for index in range(4)]
        for index, decodes in enumerate(decoding):
            if decodes:
                both.known[index].append(random_prompt(4, seed=step)[index])
        batch = both.batch(decoding)
        ours, expected = both.by_kernel(batch), both.by_torch(batch)
        assert_equal_but_for_rounding(ours, expected, dtype)


@pytest.mark.parametrize("has_kernels", [True, False])
@pytest.mark.parametrize("name", ["llama-wide", "mistral-wide", "gemma2-wide"])
def test_a_chunk_that_is_attended_to_in_several_stretches_gives_the_same_logits(
    name, has_kernels, dtype, tiny_model, random_prompt
):
    both = load_both(tiny_model(name).path, dtype, has_kernels=has_kernels)
    both.begin(random_prompt(239))
    both.begin(random_prompt(130, seed=1))
    both.blocks = [list(range(0, 60, 2)), list(range(1, 60, 2))]
    for new in ((4, 0), (199, 0), (3, 130), (33, 0)):
        batch = both.batch(new)
        ours, expected = both.by_kernel(batch), both.by_torch(batch)
        assert_equal_but_for_rounding(ours, expected, dtype)


def assert_equal_but_for_rounding(ours, expected, dtype):
    tolerance = (
        1e-4
        if dtype is torch.float32
        else 0.05 * max(row.abs().max().item() for row in (*expected, torch.ones(1)))
    )
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("num_rows", [1, 5, 7, 13])
def test_the_likeliest_token_is_the_first_of_the_highest_logits(
    dtype, num_threads, num_rows, tiny_model, random_prompt
):
    both = load_both(tiny_model("llama-biases-wide").path, dtype)
    generator = torch.Generator().manual_seed(0)
    width = both.model.head.in_features
    rows = torch.randn(70, width, generator=generator).to(dtype)
    both.model.head = Linear(rows.repeat(3, 1)[:203])  # the first 63 outputs are there three times
    config = load_model_config(tiny_model("llama-biases-wide").path)
    config = dataclasses.replace(config, vocab_size=203)
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        both.short = ShortStep(both.model, config, both.caches[0])
        for index in range(num_rows):
            both.begin(random_prompt(1, seed=index)[:1])
            both.blocks[index] = [index]
        batch = both.batch([1] * num_rows)
        tokens = both.short.likeliest(batch, num_rows)
        logits = both.by_kernel(batch)
    finally:
        torch.set_num_threads(threads)
    assert tokens == [row.tolist().index(max(row.tolist())) for row in logits]
    assert max(tokens) < 70


@pytest.mark.parametrize(("outputs", "inputs"), [(64, 64), (320, 96), (203, 64), (8, 32), (1000, 160)])
def test_packed_weights_lie_in_tiles(dtype, outputs, inputs):
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1)).to(dtype)
    linear = Linear(weight)
    assert linear.tiles is not None
    rows = linear.tiles.transpose(1, 2).reshape(-1, inputs)
    assert torch.equal(rows[:outputs], weight)
    kernels = load_kernels(dtype)
    assert kernels.is_tiled(linear.tiles, weight)
    for row, column in ((0, 0), (outputs - 1, inputs - 1), (outputs // 2, inputs // 3)):
        other = weight.clone()
        other[row, column] += 1
        assert not kernels.is_tiled(linear.tiles, other)
    x = torch.randn(3, inputs, generator=torch.Generator().manual_seed(2)).to(dtype)
    tolerance = 1e-4 if dtype is torch.float32 else 0.05
    torch.testing.assert_close(
        linear(x), torch.nn.functional.linear(x, weight), atol=inputs**0.5 * tolerance, rtol=tolerance
    )


def test_embeddings_are_found_in_the_tiles_of_the_head(dtype):
    table = torch.randn(3 * TILE + 5, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    shared = Embeddings(table, 1.0, Linear(table))
    gc.collect()  # the head is gone; the memory must not be
    others = [Linear(torch.full_like(table, 7)) for _ in range(20)]
    assert shared.table is None
    token_ids = torch.tensor([0, 63, 64, 191, 196, 5, 5])
    assert torch.equal(shared(token_ids), table[token_ids])
    assert len(others) == 20
    assert torch.equal(Embeddings(table, 3.0, Linear(table))(token_ids), table[token_ids] * 3.0)
    assert Embeddings(table, 1.0, None).table is table


def test_batches_above_the_most_tokens_are_left_to_torch(dtype, tiny_model, random_prompt):
    both = load_both(tiny_model("llama-wide").path, dtype)
    both.begin(random_prompt(40))
    row = both.batch([40]).sequences[0]
    both.short.max_tokens = 80
    assert both.short.takes(Batch([row] * 2))
    assert not both.short.takes(Batch([row] * 3))


@pytest.mark.parametrize("name", ["llama-linear", "qwen3-moe", "phi4-mini"])
def test_models_with_parts_that_the_kernel_does_not_know_are_left_to_torch(name, dtype, tiny_model):
    config = load_model_config(tiny_model(name).path)
    with Weights(tiny_model(name).path, dtype=dtype, device="cpu") as weights:
        model = Transformer(config, weights, LayerRotations(config, 64, dtype, "cpu"))
    cache = KVCache(
        config, num_blocks=4, block_size=8, dtype=dtype, device="cpu", kernels=load_kernels(dtype)
    )
    assert not ShortStep.fits(model, config, cache)
