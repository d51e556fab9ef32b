"""A batch becomes flat tensors in which every token has its place, and no row is padded to more than twice its size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tandem_common.generation import SamplingParams, StoppingParams
from tandem_engine.batch import Batch, ScheduledSequence
from tandem_engine.torch_engine.kv_cache import KVCache
from tandem_engine.torch_engine.model_config import parse_model_config
from tandem_engine.torch_engine.step_inputs import make_step_inputs

BLOCK_SIZE = 4
NUM_LAYERS = 2
CONFIG = parse_model_config(
    {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 2,
        "vocab_size": 10_000,
        "max_position_embeddings": 64,
    }
)


@pytest.fixture(scope="module")
def cache():
    return KVCache(CONFIG, num_blocks=400, block_size=BLOCK_SIZE, dtype=torch.float32, device="cpu")


def make_batch(rows):
    """Rows of (computed, new) tokens; token ids and blocks tell which row they are of."""
    sequences = []
    for index, (num_computed, num_new) in enumerate(rows):
        sequences.append(
            ScheduledSequence(
                request_id=f"r{index}",
                token_ids=[100 * index + i for i in range(num_computed + num_new)],
                num_computed_tokens=num_computed,
                num_new_tokens=num_new,
                block_ids=[20 * index + 19 - i for i in range(20)],
                num_prompt_tokens=1,
                sampling=SamplingParams(),
                stopping=StoppingParams(max_tokens=9),
                draws_token=index % 3 != 2,
            )
        )
    return Batch(sequences)


batches = st.lists(
    st.one_of(st.tuples(st.integers(0, 60), st.just(1)), st.tuples(st.integers(0, 40), st.integers(1, 20))),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(batches, st.sampled_from([0, 3, 10]))
def test_every_new_token_has_its_id_position_and_slot(cache, rows, window):
    inputs = make_step_inputs(make_batch(rows), cache, frozenset({window}), torch.float32)
    found = []
    for i, token in enumerate(inputs.token_ids.tolist()):
        index, position = divmod(token, 100)
        assert inputs.positions[i] == position
        block_id = 20 * index + 19 - position // BLOCK_SIZE
        for layer in range(NUM_LAYERS):
            block_row = (block_id * NUM_LAYERS + layer) * 2
            assert inputs.key_rows[layer, i] == block_row * BLOCK_SIZE + position % BLOCK_SIZE
            assert inputs.value_rows[layer, i] == (block_row + 1) * BLOCK_SIZE + position % BLOCK_SIZE
        found.append(token)
    expected = [100 * i + c + j for i, (c, n) in enumerate(rows) for j in range(n)]
    assert sorted(found) == sorted(expected)
    last = [100 * i + rows[i][0] + rows[i][1] - 1 for i in inputs.drawing]
    assert inputs.token_ids[inputs.last_tokens].tolist() == last
    assert sorted(inputs.drawing) == [i for i in range(len(rows)) if i % 3 != 2]


@settings(deadline=None)
@given(batches, st.sampled_from([0, 3, 10]))
def test_every_query_sees_its_window_and_nothing_else(cache, rows, window):
    inputs = make_step_inputs(make_batch(rows), cache, frozenset({window}), torch.float32)
    groups = inputs.groups[window]
    assert sum(group.num_rows * group.num_queries for group in groups) == len(inputs.token_ids)
    for group in groups:
        tokens = inputs.token_ids[group.start :][: group.num_rows * group.num_queries]
        key_rows, value_rows = group.block_rows.view(2, group.num_rows, -1)
        assert torch.equal(value_rows, key_rows + 1)
        for at_row, queries in enumerate(tokens.view(group.num_rows, -1).tolist()):
            # Where each gathered slot comes from, as the token that belongs there.
            slots = []
            for block_row in key_rows[at_row].tolist():
                index, block = divmod(block_row // (2 * NUM_LAYERS), 20)
                slots += [100 * index + (19 - block) * BLOCK_SIZE + offset for offset in range(BLOCK_SIZE)]
            slots = slots[: group.num_keys]
            for at_query, query in enumerate(queries):
                if group.is_causal:
                    seen = slots[: at_query + 1]
                elif group.mask is None:
                    seen = slots
                else:
                    shown = group.mask[at_row, 0, at_query].isfinite().tolist()
                    seen = [slot for slot, is_shown in zip(slots, shown, strict=True) if is_shown]
                start = max(query // 100 * 100, query - window + 1 if window else 0)
                assert seen == list(range(start, query + 1))


@settings(deadline=None)
@given(batches)
def test_no_row_is_padded_to_more_than_twice_its_context(cache, rows):
    batch = make_batch(rows)
    inputs = make_step_inputs(batch, cache, frozenset({0}), torch.float32)
    for group in inputs.groups[0]:
        first = inputs.positions[group.start : group.start + group.num_rows * group.num_queries]
        contexts = first.view(group.num_rows, -1)[:, -1] + 1
        assert group.num_keys <= 2 * contexts.min()


@settings(deadline=None)
@given(batches)
def test_blocks_that_are_begun_and_stay_partly_empty_are_named(cache, rows):
    inputs = make_step_inputs(make_batch(rows), cache, frozenset({0}), torch.float32)
    expected = [
        20 * i + 19 - (computed + new) // BLOCK_SIZE
        for i, (computed, new) in enumerate(rows)
        if (computed + new) % BLOCK_SIZE and (computed + new) // BLOCK_SIZE * BLOCK_SIZE >= computed
    ]
    assert sorted(inputs.begun_blocks) == sorted(expected)
