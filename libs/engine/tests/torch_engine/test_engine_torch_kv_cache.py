"""Blocks leave and enter the pool unchanged, and a sequence goes on from imported ones as if it were at home."""

import os
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tandem_common.generation import SamplingParams
from tandem_engine.torch_engine.kv_cache import KVCache
from tandem_engine.torch_engine.model_config import parse_model_config

CONFIG = parse_model_config(
    {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 10,
        "max_position_embeddings": 64,
    }
)


def make_cache(dtype=torch.float32, num_blocks=12, shared=False):
    return KVCache(CONFIG, num_blocks=num_blocks, block_size=4, dtype=dtype, device="cpu", shared=shared)


def fill(cache, block_id, number):
    """Store `number` (of layer 0) and `number` + 0.5 (layer 1) into every slot of a block."""
    slots = torch.arange(4) + block_id * cache.token_rows_per_block
    for layer in range(2):
        rows = slots + layer * 8
        numbers = torch.full((4, 2, 4), number + layer / 2, dtype=cache.dtype)
        cache.store(rows, numbers, rows + 4, -numbers)


@given(st.permutations(range(12)), st.integers(0, 12), st.sampled_from([torch.float32, torch.bfloat16]))
def test_what_is_read_can_be_written_elsewhere(block_ids, count, dtype):
    source, target = make_cache(dtype), make_cache(dtype)
    for block_id in range(12):
        fill(source, block_id, block_id)
    payload = bytearray(count * source.block_bytes)
    source.read(block_ids[:count], memoryview(payload))
    target.write(list(range(count)), memoryview(bytes(payload)))
    for place, block_id in enumerate(block_ids[:count]):
        for layer in range(2):
            keys, values = target.gather(torch.tensor([place * 4 + 2 * layer, place * 4 + 2 * layer + 1]))
            assert (keys == block_id + layer / 2).all()
            assert (values == -(block_id + layer / 2)).all()


def test_another_process_can_read_a_pool_that_is_shared():
    cache = make_cache(shared=True)
    fill(cache, 3, 1.0)
    payload = bytearray(cache.block_bytes)
    cache.read([3], memoryview(payload))
    (view,) = cache.views([3])
    assert os.pread(cache.memory.descriptor, len(view), cache.memory.offset_of(view)) == payload
    assert make_cache(shared=False).memory is None


def test_a_block_is_laid_out_layer_by_layer_keys_before_values():
    cache = make_cache()
    fill(cache, 3, 1.0)
    payload = bytearray(cache.block_bytes)
    cache.read([3], memoryview(payload))
    block = torch.frombuffer(payload, dtype=torch.float32).view(2, 2, 4, 2, 4)
    assert cache.block_shape == tuple(block.shape)
    assert block.flatten(2).unique(dim=-1).squeeze(-1).tolist() == [[1.0, -1.0], [1.5, -1.5]]


def test_a_payload_of_the_wrong_size_is_refused():
    cache = make_cache()
    with pytest.raises(ValueError, match="2 blocks of 512 bytes need 1024 bytes, got 512"):
        cache.read([1, 2], memoryview(bytearray(512)))
    with pytest.raises(ValueError, match="512"):
        cache.write([1], memoryview(bytes(1024)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", [None, 7])
def test_a_sequence_goes_on_from_exported_blocks_with_the_same_tokens(
    dtype, seed, tiny_model, load, random_prompt
):
    sampling = SamplingParams(temperature=0.0) if seed is None else SamplingParams(seed=seed)
    path = tiny_model("llama3").path
    source, target = load(path, dtype=dtype), load(path, dtype=dtype)
    target.runner.poison_blocks(range(128))
    prompt = random_prompt(45)
    at_home = source.track(prompt, sampling)
    source.prefill(at_home, chunk=16)
    moved = target.track(prompt + at_home.output, sampling, num_prompt_tokens=45)
    target.reserve(moved, 45)
    moved.num_computed_tokens = 45

    payload = bytearray(len(at_home.block_ids) * source.info.block_bytes)
    source.runner.read_blocks(at_home.block_ids, memoryview(payload))
    half = 3 * source.info.block_bytes
    target.runner.write_blocks(moved.block_ids[:3], memoryview(payload)[:half])
    target.runner.write_blocks(moved.block_ids[3:], memoryview(payload).toreadonly()[half:])

    for _ in range(20):
        source.step((at_home, 1))
        target.step((moved, 1))
    assert moved.output == at_home.output


def test_resuming_from_the_tokens_so_far_draws_what_would_have_come(tiny_model, load, random_prompt):
    driver = load(tiny_model("qwen3").path)
    for seed in range(3):
        sampling = SamplingParams(seed=seed, top_p=0.9, frequency_penalty=0.4)
        prompt = random_prompt(20, seed)
        whole = driver.generate(driver.track(prompt, sampling), 24)
        cut = random.Random(seed).randint(1, 20)
        resumed = driver.track(prompt + whole[:cut], sampling, num_prompt_tokens=20)
        assert driver.generate(resumed, 24, chunk=9) == whole
