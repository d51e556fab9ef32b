"""A decode step of static tensors gives what an ordinary step gives, and touches no block but its rows' own.

What CUDA adds, capture and replay, is left out here: a "captured" step is the step itself.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tandem_common.generation import SamplingParams
from tandem_engine.torch_engine.decode_graphs import DecodeGraphs, capture_steps
from tandem_engine.torch_engine.decode_step import DecodeStep, decode_sizes
from tandem_engine.torch_engine.mlp import Experts, GroupedExperts, load_grouped, load_mlp
from tandem_engine.torch_engine.model_config import load_model_config
from tandem_engine.torch_engine.weights import Weights

SCRATCH_BLOCK = 127  # the last of those that `load` makes
MAX_SEQUENCES = 12
FAMILIES = [
    "llama3",
    "llama-biases",
    "mistral-window",
    "qwen2-window",
    "qwen3-window",
    "gemma2",
    "gemma3",
    "phi3-partial",
    "qwen3-moe",
]


@torch.inference_mode()
def make_static(driver, attention, capture=lambda compute: compute):
    """Have a runner decode as on a GPU, over a pool full of NaN."""
    runner = driver.runner
    runner.short_step, runner.cache.kernels, runner.cache.paged = None, None, attention
    runner.cache.poison(range(SCRATCH_BLOCK + 1))
    driver._free.remove(SCRATCH_BLOCK)
    step = DecodeStep(runner._model, runner.cache, windows=runner._windows, scratch_block=SCRATCH_BLOCK)
    runner.decode_graphs = DecodeGraphs(
        step, max_sequences=MAX_SEQUENCES, max_context_tokens=256, capture=capture
    )


@dataclass
class CountedCapture:
    """Captures nothing, and counts what is run."""

    runs: int = 0

    def __call__(self, compute):
        def run():
            self.runs += 1
            compute()

        return run


SAMPLING = st.sampled_from(
    [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.0, logprobs=2),
        SamplingParams(seed=3),
        SamplingParams(seed=5, top_k=9, frequency_penalty=0.5),
    ]
)


@given(
    name=st.sampled_from(FAMILIES),
    rows=st.lists(st.tuples(st.integers(1, 60), SAMPLING), min_size=1, max_size=MAX_SEQUENCES - 2),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_static_steps_draw_what_ordinary_steps_draw(
    name, rows, seed, tiny_model, load, random_prompt, attend_plainly
):
    ordinary, static = load(tiny_model(name).path), load(tiny_model(name).path)
    capture = CountedCapture()
    make_static(static, attend_plainly, capture)
    choice = random.Random(seed)
    tracks = [
        [driver.track(random_prompt(length, seed + i), sampling) for i, (length, sampling) in enumerate(rows)]
        for driver in (ordinary, static)
    ]
    for driver, own in zip((ordinary, static), tracks, strict=True):
        for track in own:
            driver.prefill(track, chunk=25)
    capture.runs = 0
    for _ in range(10):
        decoding = [i for i in range(len(rows)) if choice.random() < 0.8] or [0]
        for driver, own in zip((ordinary, static), tracks, strict=True):
            driver.step(*((own[i], 1) for i in decoding))
    assert capture.runs == 10
    assert [track.output for track in tracks[1]] == [track.output for track in tracks[0]]
    # And the logits themselves, in a batch that has a prompt beside those that decode as well as without.
    newcomers = [driver.track(random_prompt(30, seed)) for driver in (ordinary, static)]
    for beside in (True, False):
        logits = []
        for driver, own, newcomer in zip((ordinary, static), tracks, newcomers, strict=True):
            batch = driver.batch(*((track, 1) for track in own), *([(newcomer, 30)] if beside else []))
            if beside or driver is ordinary:
                logits.append(driver.runner.compute_logits(batch))
            else:
                with torch.inference_mode():
                    logits.append([*driver.runner.decode_graphs.run(batch).logits])
        torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=0)


def test_rows_that_draw_nothing_are_computed_too(tiny_model, load, random_prompt, attend_plainly):
    drivers = [load(tiny_model("llama").path), load(tiny_model("llama").path)]
    make_static(drivers[1], attend_plainly)
    outputs = []
    for driver in drivers:
        drawing = driver.track(random_prompt(9))
        driver.prefill(drawing)
        for sampling in (SamplingParams(temperature=0.0), SamplingParams(seed=1)):
            other = driver.track(random_prompt(12, 4), sampling)
            for _ in range(12):  # a prompt token by token
                driver.step((other, 1), (drawing, 1))
            outputs.append((other.output, list(drawing.output)))
    assert outputs[:2] == outputs[2:]


def test_padding_and_other_rows_touch_no_block_but_their_own(tiny_model, load, random_prompt, attend_plainly):
    driver = load(tiny_model("mistral-window").path)
    make_static(driver, attend_plainly)
    tracks = [driver.track(random_prompt(length, length)) for length in (7, 8, 15, 16, 24)]
    for track in tracks:
        driver.prefill(track)
    for _ in range(12):
        before = driver.runner.cache.pool.clone()
        driver.step(*((track, 1) for track in tracks))
        after = driver.runner.cache.pool
        written = {SCRATCH_BLOCK}
        for track in tracks:
            position = track.num_computed_tokens - 1
            block, slot = track.block_ids[position // 8], position % 8
            written.add(block)
            assert after[block, :, :, : slot + 1].isfinite().all()
            assert (after[block, :, :, slot + 1 :] == 0).all()
            assert torch.equal(after[block, :, :, :slot], before[block, :, :, :slot])
        kept = [block for block in range(SCRATCH_BLOCK) if block not in written]
        torch.testing.assert_close(after[kept], before[kept], atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("max_rows", [1, 2, 3, 4, 7, 8, 9, 63, 64, 100])
def test_each_number_of_rows_has_a_size_with_little_padding(max_rows):
    sizes = decode_sizes(max_rows)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_rows
    for rows in range(1, max_rows + 1):
        assert next(size for size in sizes if size >= rows) - rows <= min(7, rows - 1)


def test_a_batch_with_prompts_or_too_many_rows_is_not_taken(tiny_model, load, random_prompt, attend_plainly):
    driver = load(tiny_model("llama").path)
    make_static(driver, attend_plainly)
    graphs = driver.runner.decode_graphs
    tracks = [driver.track(random_prompt(2, seed)) for seed in range(MAX_SEQUENCES + 1)]
    assert graphs.takes(driver.batch(*((track, 1) for track in tracks[:-1])))
    assert not graphs.takes(driver.batch(*((track, 1) for track in tracks)))
    assert not graphs.takes(driver.batch((tracks[0], 1), (tracks[1], 2)))


@torch.inference_mode()
@pytest.mark.parametrize("error", [RuntimeError("no memory"), TypeError("from a compiler")])
def test_a_failed_capture_leaves_the_ordinary_way(error, tiny_model, load, attend_plainly):
    driver = load(tiny_model("llama").path)
    make_static(driver, attend_plainly)
    step = driver.runner.decode_graphs._step

    def fail(compute):
        raise error

    made = capture_steps(step, max_sequences=2, max_context_tokens=64, make_capture=lambda: fail)
    assert made is None


@torch.inference_mode()
@pytest.mark.parametrize("name", ["qwen3-moe", "qwen3-moe-shares", "mixtral"])
@pytest.mark.parametrize("num_tokens", [1, 2, 17])
def test_grouped_experts_are_the_same_mixture(name, num_tokens, tiny_model):
    path = tiny_model(name).path
    config = load_model_config(path)
    with Weights(path, dtype=torch.float32, device="cpu") as weights:
        layer = max(config.experts.layers)
        plain = load_mlp(config, layer, weights)
        assert isinstance(plain, Experts)
        block = f"model.layers.{layer}.{config.experts.names.block}"
        each = [f"{block}.experts.{number}" for number in range(config.experts.num_experts)]
        grouped = load_grouped(config, config.experts, plain._router, each, weights)
    assert isinstance(grouped, GroupedExperts)
    x = torch.randn(num_tokens, config.hidden_size, generator=torch.Generator().manual_seed(num_tokens))
    torch.testing.assert_close(grouped(x), plain(x), atol=1e-5, rtol=1e-4)
