"""Batches as arrays, against what they say row by row."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tandem_common.generation import SamplingParams, StoppingParams
from tandem_engine.batch import Batch, ScheduledSequence
from tandem_engine.torch_engine.flat_batch import flatten

BLOCK_SIZE = 4


@st.composite
def rows(draw: st.DrawFn) -> ScheduledSequence:
    num_known = draw(st.integers(1, 40))
    computed = draw(st.integers(0, num_known - 1))
    new = draw(st.integers(1, num_known - computed))
    return ScheduledSequence(
        request_id="req",
        token_ids=draw(st.lists(st.integers(0, 99), min_size=num_known, max_size=num_known)),
        num_computed_tokens=computed,
        num_new_tokens=new,
        block_ids=draw(st.permutations(range(num_known // BLOCK_SIZE + 1))),
        num_prompt_tokens=1,
        sampling=SamplingParams(),
        stopping=StoppingParams(max_tokens=1),
        draws_token=computed + new == num_known,
    )


@given(st.lists(rows(), max_size=5), st.integers(1, 8))
def test_every_token_finds_its_position_and_its_blocks(sequences, stretch_tokens):
    flat = flatten(Batch(sequences), block_size=BLOCK_SIZE, stretch_tokens=stretch_tokens)
    token = 0
    drawing, begun = [], []
    for row in sequences:
        for position in range(row.num_computed_tokens, row.position):
            assert flat.token_ids[token] == row.token_ids[position]
            assert flat.positions[token] == position
            table = flat.tables[token]
            assert list(flat.blocks[table : table + len(row.block_ids)]) == list(row.block_ids)
            if position % BLOCK_SIZE == 0 and row.position < position + BLOCK_SIZE:
                begun.append(row.block_ids[position // BLOCK_SIZE])
            token += 1
        if row.draws_token:
            drawing.append(token - 1)
    assert len(flat.token_ids) == len(flat.positions) == len(flat.tables) == token
    assert list(flat.drawing) == drawing
    assert flat.begun_blocks == begun


@given(st.lists(rows(), max_size=5), st.integers(1, 8))
def test_every_token_attends_alone_or_in_one_stretch_of_its_row(sequences, stretch_tokens):
    flat = flatten(Batch(sequences), block_size=BLOCK_SIZE, stretch_tokens=stretch_tokens)
    attending = list(flat.single)
    lengths = []
    for first, count in zip(flat.stretches[::2], flat.stretches[1::2], strict=True):
        assert 0 < count <= stretch_tokens
        stretch = range(first, first + count)
        attending += stretch
        assert [flat.positions[t] - flat.positions[first] for t in stretch] == list(range(count))
        assert len({flat.tables[t] for t in stretch}) == 1
        lengths.append(flat.positions[first])
    assert sorted(attending) == list(range(len(flat.token_ids)))
    assert lengths == sorted(lengths, reverse=True)
