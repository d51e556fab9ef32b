"""However a sequence is laid out, cut up, interrupted or moved, its tokens are those of the plainest computation.

The plainest: alone, the prompt in one piece, all of it in a single block, then token by token; other tests compare that
with transformers. Each test here changes one thing at random, greedily and with seeded sampling. They drive the runner
without a scheduler; `test_engine_torch_properties.py` does all of it at once, in whole engines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tandem_common.generation import SamplingParams

NUM_TOKENS = 20
MAX_PROMPT = 44
# By torch's operators, and by the kernel that takes whole steps on a CPU.
MODELS = ["llama3", "mistral-window", "qwen2-window", "qwen3", "gemma3", "phi3-partial", "mixtral"]
MODELS += ["llama-wide", "mistral-wide", "qwen3-wide", "gemma2-wide", "phi3-wide"]
SAMPLINGS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.0, repetition_penalty=1.2, frequency_penalty=0.2),
    SamplingParams(seed=1),
    SamplingParams(seed=2, temperature=0.8, top_k=40, top_p=0.9),
)

# The same examples in every run: next to a border between two tokens rounding may decide.
same_examples = settings(
    max_examples=36, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
models = st.sampled_from(MODELS)
samplings = st.sampled_from(SAMPLINGS)
block_sizes = st.sampled_from([1, 2, 3, 5, 8, 16])
prompts = st.builds(
    lambda length, seed: [(seed * 7919 + index * (2 * seed + 3)) % 320 for index in range(length)],
    st.integers(2, MAX_PROMPT),
    st.integers(0, 40),
)
chunk_sizes = st.lists(st.integers(1, 17), min_size=1, max_size=6)


@pytest.fixture
def workshop(tiny_model: Any, load: Any) -> Workshop:
    """Loaded runners, by what they are."""
    return Workshop(tiny_model, load)


class Workshop:
    """Drivers of loaded runners, made once each, and what the plainest computation gives."""

    def __init__(self, tiny_model: Any, load: Any) -> None:
        self._tiny_model = tiny_model
        self._load = load
        self._drivers: dict[tuple[str, int, str], Any] = {}

    def driver(self, model: str, block_size: int, name: str = "") -> Any:
        """A runner; another `name` is another one, with a pool of its own."""
        key = (model, block_size, name)
        if key not in self._drivers:
            self._drivers[key] = self._load(
                self._tiny_model(model).path,
                block_size=block_size,
                num_blocks=-(-400 // block_size),
                max_context_tokens=96,
            )
            self._drivers[key].runner.poison_blocks(range(-(-400 // block_size)))
        return self._drivers[key]

    def plain(self, model: str, prompt: Sequence[int], sampling: SamplingParams) -> list[int]:
        """Alone, in one piece, in one block."""
        driver = self.driver(model, 96)
        track = driver.track(prompt, sampling)
        driver.prefill(track)
        while len(track.output) < NUM_TOKENS:
            driver.step((track, 1))
        return self.finish(driver, track)

    def finish(self, driver: Any, track: Any) -> list[int]:
        """Give the blocks back, poisoned; what was drawn."""
        driver.runner.poison_blocks(driver.release(track))
        return list(track.output)


def compute(driver: Any, track: Any, chunks: Sequence[int]) -> None:
    """Compute all known tokens in chunks of these sizes, over and over; the last one draws."""
    index = 0
    while (left := len(track.token_ids) - track.num_computed_tokens) > 0:
        size = min(left, chunks[index % len(chunks)])
        driver.step((track, size))
        index += 1
        if size == left:
            return


def go_on(driver: Any, track: Any, until: int = NUM_TOKENS) -> None:
    while len(track.output) < until:
        driver.step((track, 1))


def check(holds: Callable[..., None], *strategies: Any) -> None:
    same_examples(given(models, prompts, samplings, *strategies)(holds))()


def test_paged_is_contiguous_and_chunked_is_whole(workshop: Workshop) -> None:
    def holds(
        model: str, prompt: list[int], sampling: SamplingParams, block_size: int, chunks: list[int]
    ) -> None:
        driver = workshop.driver(model, block_size)
        track = driver.track(prompt, sampling)
        compute(driver, track, chunks)
        go_on(driver, track)
        assert workshop.finish(driver, track) == workshop.plain(model, prompt, sampling)

    check(holds, block_sizes, chunk_sizes)


def test_a_cached_prefix_is_an_uncached_one(workshop: Workshop) -> None:
    def holds(
        model: str,
        prompt: list[int],
        sampling: SamplingParams,
        block_size: int,
        share: float,
        chunks: list[int],
    ) -> None:
        driver = workshop.driver(model, block_size)
        # Another request computed the same prefix, in its own way, and went on differently.
        num_shared = int(share * (len(prompt) - 1)) // block_size * block_size
        other = driver.track([*prompt[:num_shared], 7, 8, 9], SamplingParams(seed=9))
        compute(driver, other, chunks)
        track = driver.track(prompt, sampling)
        track.block_ids = other.block_ids[: num_shared // block_size]
        track.num_computed_tokens = num_shared
        go_on(driver, other, 3)
        compute(driver, track, chunks)
        for _ in range(NUM_TOKENS - len(track.output)):
            driver.step((track, 1), (other, 1))
        output = list(track.output)
        workshop.finish(driver, other)
        track.block_ids = track.block_ids[num_shared // block_size :]
        workshop.finish(driver, track)
        assert output == workshop.plain(model, prompt, sampling)

    check(holds, block_sizes, st.floats(0, 1), chunk_sizes)


def test_preempted_is_undisturbed(workshop: Workshop) -> None:
    def holds(
        model: str,
        prompt: list[int],
        sampling: SamplingParams,
        block_size: int,
        at: int,
        chunks: list[int],
    ) -> None:
        driver = workshop.driver(model, block_size)
        track = driver.track(prompt, sampling)
        compute(driver, track, chunks)
        go_on(driver, track, at)
        # It loses its blocks, and computes again what it knew: the prompt and what it has drawn.
        driver.runner.poison_blocks(driver.release(track))
        track.num_computed_tokens = 0
        compute(driver, track, chunks[::-1])
        go_on(driver, track)
        assert workshop.finish(driver, track) == workshop.plain(model, prompt, sampling)

    check(holds, block_sizes, st.integers(1, NUM_TOKENS - 1), chunk_sizes)


def test_exported_and_imported_is_local(workshop: Workshop) -> None:
    def holds(
        model: str,
        prompt: list[int],
        sampling: SamplingParams,
        block_size: int,
        at: int,
        chunks: list[int],
    ) -> None:
        here, there = workshop.driver(model, block_size), workshop.driver(model, block_size, "there")
        track = here.track(prompt, sampling)
        compute(here, track, chunks)
        go_on(here, track, at)
        moved = there.track(track.token_ids, sampling, num_prompt_tokens=len(prompt))
        there.reserve(moved, track.num_computed_tokens)
        moved.num_computed_tokens = track.num_computed_tokens
        sources, targets = here.runner.view_blocks(track.block_ids), there.runner.view_blocks(moved.block_ids)
        payload = memoryview(b"".join(sources))
        for target in targets:
            target[:], payload = payload[: len(target)], payload[len(target) :]
        workshop.finish(here, track)
        go_on(there, moved)
        assert workshop.finish(there, moved) == workshop.plain(model, prompt, sampling)

    check(holds, block_sizes, st.integers(1, NUM_TOKENS - 1), chunk_sizes)


def test_resumed_from_the_tokens_so_far_is_uninterrupted(workshop: Workshop) -> None:
    def holds(
        model: str,
        prompt: list[int],
        sampling: SamplingParams,
        block_size: int,
        at: int,
        chunks: list[int],
    ) -> None:
        expected = workshop.plain(model, prompt, sampling)
        driver = workshop.driver(model, block_size)
        track = driver.track([*prompt, *expected[:at]], sampling, num_prompt_tokens=len(prompt))
        compute(driver, track, chunks)
        go_on(driver, track)
        assert workshop.finish(driver, track) == expected

    check(holds, block_sizes, st.integers(0, NUM_TOKENS - 1), chunk_sizes)


def test_neighbours_change_nothing(workshop: Workshop) -> None:
    def holds(
        model: str,
        prompt: list[int],
        sampling: SamplingParams,
        block_size: int,
        others: list[tuple[list[int], SamplingParams]],
        chunks: list[int],
    ) -> None:
        driver = workshop.driver(model, block_size)
        wanted = [(prompt, sampling), *others]
        tracks = [driver.track(*each) for each in wanted]
        # All of them at once; each is at another place of its prompt or output in the same step.
        index = 0
        while any(len(track.output) < NUM_TOKENS for track in tracks):
            rows = []
            for track in tracks:
                left = len(track.token_ids) - track.num_computed_tokens
                index += 1
                if len(track.output) < NUM_TOKENS:
                    rows.append((track, min(left, chunks[index % len(chunks)])))
            driver.step(*sorted(rows, key=lambda row: row[1] > 1))
        assert [workshop.finish(driver, track) for track in tracks] == [
            workshop.plain(model, *each) for each in wanted
        ]

    check(holds, block_sizes, st.lists(st.tuples(prompts, samplings), min_size=1, max_size=4), chunk_sizes)
