"""Columns of decodes say the same as looking at every sequence in every step."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from tandem_common.generation import Generation, RequestClass, SamplingParams, StoppingParams
from tandem_common.hashing import namespace_root
from tandem_engine.api import StepOutput, TokenLogprobs
from tandem_engine.batch import Batch, Draw, DrawnToken
from tandem_engine.block_pool import BlockPool
from tandem_engine.config import EngineConfig
from tandem_engine.decode_columns import DecodeColumns
from tandem_engine.scheduler import Scheduler
from tandem_engine.simulated import SimulatedRunner
from tandem_engine.step_cost import step_cost

ROOT = namespace_root("model")


class RowByRow(Scheduler):
    """The slow way."""

    def _usable_columns(self) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request, after so many steps; cancelled after so many more, if at all."""

    at: int
    prompt: list[int]
    max_tokens: int
    min_tokens: int
    stops: frozenset[int]
    is_batch: bool
    logprobs: bool
    cancel_after: int

    def generation(self, name: str) -> Generation:
        return Generation(
            request_id=name,
            token_ids=list(self.prompt),
            num_prompt_tokens=len(self.prompt),
            namespace=ROOT,
            stopping=StoppingParams(
                max_tokens=self.max_tokens,
                min_tokens=min(self.min_tokens, self.max_tokens),
                stop_token_ids=self.stops,
            ),
            sampling=SamplingParams(logprobs=1 if self.logprobs else None),
            request_class=RequestClass.BATCH if self.is_batch else RequestClass.INTERACTIVE,
        )


jobs = st.builds(
    Job,
    at=st.integers(0, 12),
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=12),
    max_tokens=st.integers(1, 14),
    min_tokens=st.integers(0, 6),
    stops=st.frozensets(st.integers(0, 5), max_size=3),
    is_batch=st.booleans(),
    logprobs=st.sampled_from([False, False, False, False, True]),
    cancel_after=st.sampled_from([2, 5, 100, 100, 100]),
)


def drawn_for(batch: Batch) -> list[Draw]:
    """Tokens of a small vocabulary that depend on what is known, so that stop tokens are drawn."""
    draws: list[Draw] = []
    for row in batch.sequences:
        token_id = (sum(row.token_ids) * 7 + len(row.token_ids) * 3) % 6
        if not row.draws_token:
            draws.append(None)
        else:
            draws.append(
                token_id
                if row.sampling.logprobs is None
                else DrawnToken(token_id, TokenLogprobs(logprob=-1.0))
            )
    return draws


class Lane:
    """One scheduler, played."""

    def __init__(self, kind: type[Scheduler], num_blocks: int, block_size: int, places: int) -> None:
        config = EngineConfig(
            engine="simulated",
            num_blocks=num_blocks,
            block_size=block_size,
            max_step_tokens=9,
            max_sequences=places,
        )
        info = SimulatedRunner(config).load()
        self.scheduler = kind(info, BlockPool(num_blocks, block_size))
        self.num_by_column = 0

    def step(self) -> tuple[list[tuple[str, int, int]], StepOutput] | None:
        batch = self.scheduler.schedule()
        if not batch.sequences:
            return None
        self.num_by_column += batch.num_counted
        rows = [(row.request_id, row.num_computed_tokens, row.num_new_tokens) for row in batch.sequences]
        output = self.scheduler.postprocess(batch, drawn_for(batch), step_cost(batch, 1.0))
        self.scheduler.check_integrity()
        return rows, output


@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(jobs, min_size=1, max_size=9),
    block_size=st.integers(1, 5),
    spare_blocks=st.integers(0, 30),
    places=st.integers(1, 6),
)
def test_columns_and_rows_say_the_same(
    requests: list[Job], block_size: int, spare_blocks: int, places: int
) -> None:
    num_blocks = -(-26 // block_size) + spare_blocks
    lanes = [Lane(kind, num_blocks, block_size, places) for kind in (Scheduler, RowByRow)]
    for now in range(400):
        for number, job in enumerate(requests):
            for lane in lanes:
                if job.at == now:
                    lane.scheduler.submit(job.generation(f"r{number}"))
                if job.at + job.cancel_after == now:
                    lane.scheduler.cancel(f"r{number}")
        fast, slow = (lane.step() for lane in lanes)
        assert fast == slow
        if fast is None and now > 12:
            break
    else:
        raise AssertionError("the schedulers make no progress")
    assert lanes[0].scheduler.pool.num_used == 0
    assert lanes[1].num_by_column == 0


def test_sequences_are_looked_at_only_when_something_about_them_changes(monkeypatch) -> None:
    looked_at: list[str] = []
    look_ahead = DecodeColumns._look_ahead
    monkeypatch.setattr(
        DecodeColumns,
        "_look_ahead",
        lambda self, sequence: (looked_at.append(sequence.request_id), look_ahead(self, sequence)),
    )
    lane = Lane(Scheduler, 200, 5, 4)
    for name in "abc":
        job = Job(
            at=0,
            prompt=[1, 2],
            max_tokens=28,
            min_tokens=0,
            stops=frozenset({9}),
            is_batch=False,
            logprobs=False,
            cancel_after=100,
        )
        lane.scheduler.submit(job.generation(name))
    while lane.step():
        pass
    # Each when it begins and when it has filled one of the six blocks that 29 computed tokens take.
    assert {name: looked_at.count(name) for name in "abc"} == dict.fromkeys("abc", 6)
