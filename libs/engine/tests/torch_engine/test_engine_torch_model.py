"""The transformer gives what transformers gives, however a sequence is cut up and whoever is beside it."""

import random

import pytest
import torch
from tandem_engine.torch_engine.linear import has_tiles

FAMILIES = [
    "llama",
    "llama2",
    "llama3",
    "llama-biases",
    "llama-linear",
    "mistral",
    "mistral-window",
    "qwen2",
    "qwen2-window",
    "qwen2.5",
    "qwen3",
    "qwen3-window",
    "qwen3-moe",
    "qwen3-moe-shares",
    "mixtral",
    "mixtral-window",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3-partial",
    "phi3-window",
]
# Of sizes that the kernel for whole steps on a CPU takes: what most users of a CPU run.
BY_KERNEL = [
    "llama-wide",
    "llama-biases-wide",
    "mistral-wide",
    "qwen2-wide",
    "qwen3-wide",
    "gemma2-wide",
    "gemma3-wide",
    "phi3-wide",
]
MAX_DIFFERENCE = 1e-4


@pytest.mark.parametrize("name", FAMILIES + BY_KERNEL)
def test_logits_after_every_token_are_those_of_transformers(name, tiny_model, load, random_prompt):
    model = tiny_model(name)
    driver = load(model.path)
    prompt = random_prompt(75)
    expected = model.logits(prompt)
    one_by_one, whole, in_chunks = driver.track(prompt), driver.track(prompt), driver.track(prompt)

    assert (driver.logits(whole, 75) - expected[-1]).abs().max() < MAX_DIFFERENCE
    for chunk in (13, 1, 30, 22, 9):
        last = driver.logits(in_chunks, chunk)
    assert (last - expected[-1]).abs().max() < MAX_DIFFERENCE
    for position in range(75):
        # The row draws only from its last known token, so that the later ones are hidden from it.
        one_by_one.token_ids = prompt[: position + 1]
        logits = driver.logits(one_by_one, 1)
        assert (logits - expected[position]).abs().max() < MAX_DIFFERENCE, position


@pytest.mark.parametrize("name", FAMILIES + BY_KERNEL)
def test_greedy_tokens_are_those_of_transformers(name, tiny_model, load, random_prompt):
    model = tiny_model(name)
    driver = load(model.path)
    for seed, length in enumerate((1, 8, 17, 40)):
        prompt = random_prompt(length, seed)
        expected = model.greedy(prompt, 24)
        assert len(set(expected)) > 8  # else the model proves nothing
        assert driver.generate(driver.track(prompt), 24, chunk=11) == expected


@pytest.mark.skipif(
    not has_tiles(torch.float32, "cpu"), reason="no C compiler, or weights are not packed here"
)
@pytest.mark.parametrize(("names", "by_kernel"), [(FAMILIES, False), (BY_KERNEL, True)])
def test_the_comparisons_cover_torchs_operators_and_the_kernel(names, by_kernel, tiny_model, load):
    # A control for the tests above: each list is computed in the way that it stands for.
    for name in names:
        assert (load(tiny_model(name).path).runner.short_step is not None) is by_kernel, name


@pytest.mark.parametrize("name", ["llama3", "mistral-window", "qwen3", "llama-wide"])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_tokens_do_not_depend_on_chunks_blocks_or_neighbours(
    name, block_size, tiny_model, load, random_prompt
):
    model = tiny_model(name)
    driver = load(model.path, block_size=block_size, num_blocks=2048 // block_size)
    prompts = [random_prompt(length, seed=length) for length in (1, 2, 7, 16, 33, 34, 35, 90)]
    alone = [driver.generate(driver.track(prompt), 20) for prompt in prompts]
    driver = load(model.path, block_size=block_size, num_blocks=2048 // block_size)

    # Everything at once: rows start at different steps and their chunks have random sizes.
    choose = random.Random(block_size)
    tracks = [driver.track(prompt) for prompt in prompts]
    while any(len(track.output) < 20 for track in tracks):
        rows = []
        for track in tracks:
            left = len(track.token_ids) - track.num_computed_tokens
            if len(track.output) < 20 and choose.random() < 0.8:
                rows.append((track, 1 if left == 1 else choose.randint(1, min(left, 40))))
        if rows:
            driver.step(*sorted(rows, key=lambda row: row[1] > 1))

    assert [track.output for track in tracks] == alone


def test_a_row_that_does_not_reach_its_last_token_draws_nothing(tiny_model, load, random_prompt):
    driver = load(tiny_model("llama").path)
    track = driver.track(random_prompt(9))
    assert driver.runner.execute(driver.batch((track, 4))) == [None]
    other = driver.track(random_prompt(5, seed=1))
    first, second = driver.runner.execute(driver.batch((track, 4), (other, 5)))
    assert first is None
    assert second is not None


def test_changed_keys_and_values_change_the_tokens(tiny_model, load, random_prompt):
    # A control for the tests above: they would notice a wrong cache.
    model = tiny_model("llama")
    driver = load(model.path)
    prompt = random_prompt(30)
    right, wrong = driver.track(prompt), driver.track(prompt)
    driver.prefill(right)
    driver.prefill(wrong)
    block = bytearray(driver.info.block_bytes)
    driver.runner.read_blocks([wrong.block_ids[1]], memoryview(block))
    driver.runner.write_blocks([wrong.block_ids[2]], memoryview(block))
    for _ in range(10):
        driver.step((right, 1), (wrong, 1))
    assert right.output == model.greedy(prompt, 11)
    assert wrong.output != right.output


def test_a_freed_block_filled_with_nan_changes_nobody(tiny_model, load, random_prompt):
    model = tiny_model("llama3")
    driver = load(model.path, num_blocks=24)
    driver.runner.poison_blocks(range(24))
    first = driver.track(random_prompt(50, seed=1))
    second = driver.track(random_prompt(11, seed=2))
    assert driver.generate(first, 20, chunk=7) == model.greedy(random_prompt(50, seed=1), 20)
    driver.runner.poison_blocks(driver.release(first))
    assert driver.generate(second, 30) == model.greedy(random_prompt(11, seed=2), 30)
    third = driver.track(random_prompt(70, seed=3))
    assert driver.generate(third, 5, chunk=30) == model.greedy(random_prompt(70, seed=3), 5)


def test_a_poisoned_block_that_is_in_use_shows(tiny_model, load, random_prompt):
    driver = load(tiny_model("llama").path)
    track = driver.track(random_prompt(20))
    driver.prefill(track)
    driver.runner.poison_blocks(track.block_ids[:1])
    assert torch.isnan(driver.logits(track, 1)).all()


def test_bfloat16_follows_float32_as_far_as_it_can(tiny_model, load, random_prompt):
    model = tiny_model("llama3")
    driver = load(model.path, dtype="bfloat16")
    assert driver.info.dtype == "bfloat16"
    prompt = random_prompt(60)
    expected = model.logits(prompt)[-1]
    logits = driver.logits(driver.track(prompt), 60)
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    assert logits.dtype == torch.float32


def test_a_prompt_can_fill_the_context_and_gets_one_token(tiny_model, load, random_prompt):
    model = tiny_model("qwen3")
    driver = load(model.path)
    prompt = random_prompt(256)
    assert driver.info.max_context_tokens == 256
    assert driver.generate(driver.track(prompt), 1, chunk=100) == model.greedy(prompt, 1)
