import asyncio
from collections.abc import Sequence
from typing import cast

from tandem_common.errors import TandemError, Unavailable
from tandem_engine.api import Engine, PrefillProgress, RequestFailure, StepOutput, TokenOutput
from tandem_worker.dispatch import Dispatcher


class FakeEngine:
    def __init__(self) -> None:
        self.cancelled: list[str] = []

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)


class Owner:
    def __init__(self, *, broken: bool = False) -> None:
        self.token_ids: list[int] = []
        self.errors: list[TandemError] = []
        self.broken = broken

    def on_tokens(self, output: TokenOutput) -> None:
        if self.broken:
            raise ZeroDivisionError
        self.token_ids += output.token_ids

    def on_progress(self, progress: PrefillProgress) -> None: ...

    def on_failure(self, error: TandemError) -> None:
        self.errors.append(error)


def step(*request_ids: str) -> StepOutput:
    return StepOutput(tokens=[TokenOutput(request_id=name, token_ids=(7,)) for name in request_ids])


def make() -> tuple[Dispatcher, FakeEngine]:
    engine = FakeEngine()
    return Dispatcher(cast(Engine, engine)), engine


async def test_outputs_reach_their_owners_and_strangers_are_ignored() -> None:
    dispatcher, _ = make()
    first, second = Owner(), Owner()
    assert dispatcher.claim("a", first) == "a"
    dispatcher.claim("b", second)
    dispatcher.deliver(step("a", "b", "a", "stranger"))
    assert (first.token_ids, second.token_ids) == ([7, 7], [7])


class Sink:
    def __init__(self) -> None:
        self.columns: list[tuple[list[int], list[int]]] = []

    def add_plain(self, stream_ids: Sequence[int], token_ids: Sequence[int]) -> None:
        self.columns.append((list(stream_ids), list(token_ids)))


def plain(*request_ids: str) -> StepOutput:
    return StepOutput(plain_request_ids=request_ids, plain_token_ids=range(7, 7 + len(request_ids)))


async def test_plain_tokens_go_to_the_sinks_of_their_requests_by_the_column() -> None:
    dispatcher, _ = make()
    first, second = Sink(), Sink()
    for name, sink, stream_id in (("a", first, 1), ("b", first, 2), ("c", second, 1), ("d", second, 5)):
        dispatcher.claim(name, Owner())
        dispatcher.send_plain(name, sink, stream_id)
    dispatcher.deliver(plain("b", "stranger", "a"))
    dispatcher.deliver(plain("d", "a", "c"))
    dispatcher.deliver(plain("b"))
    dispatcher.deliver(plain("stranger"))
    assert first.columns == [([2, 1], [7, 9]), ([1], [8]), ([2], [7])]
    assert second.columns == [([5, 1], [7, 9])]


async def test_plain_tokens_end_with_the_claim_or_before() -> None:
    dispatcher, _ = make()
    sink = Sink()
    for stream_id, name in enumerate("abc"):
        dispatcher.claim(name, Owner())
        dispatcher.send_plain(name, sink, stream_id)
    dispatcher.release("a")
    dispatcher.stop_plain("b")
    dispatcher.stop_plain("b")
    dispatcher.deliver(plain("a", "b", "c"))
    dispatcher.release("b")
    dispatcher.release("c")
    dispatcher.deliver(plain("a", "b", "c"))
    assert sink.columns == [([2], [9])]


async def test_an_owner_at_fault_is_ended_alone() -> None:
    dispatcher, _ = make()
    bad, good = Owner(broken=True), Owner()
    dispatcher.claim("bad", bad)
    dispatcher.claim("good", good)
    dispatcher.deliver(step("bad", "good"))
    assert good.token_ids == [7]
    assert [error.message for error in bad.errors] == ["internal error"]


async def test_a_request_that_is_here_already_gets_an_id_of_its_own() -> None:
    dispatcher, engine = make()
    old, new = Owner(), Owner()
    dispatcher.claim("a", old)
    other = dispatcher.claim("a", new)
    assert other != "a"
    dispatcher.deliver(step("a"))
    assert (old.token_ids, new.token_ids) == ([7], [])
    dispatcher.release("a")
    dispatcher.deliver(step(other))
    assert new.token_ids == [7]
    assert engine.cancelled == ["a"]


async def test_it_is_idle_when_the_last_request_was_released() -> None:
    dispatcher, _ = make()
    await dispatcher.idle()
    dispatcher.claim("a", Owner())
    waiting = asyncio.create_task(dispatcher.idle())
    await asyncio.sleep(0)
    assert not waiting.done()
    dispatcher.release("a")
    dispatcher.release("a")
    await waiting


async def test_failures_and_the_end_of_the_step_are_told() -> None:
    dispatcher, _ = make()
    owner, calls = Owner(), []
    dispatcher.claim("a", owner)
    dispatcher.add_after_step("key", lambda: calls.append(1))
    error = Unavailable("no room")
    dispatcher.deliver(StepOutput(failures=[RequestFailure(request_id="a", error=error)]))
    assert owner.errors == [error]
    assert dispatcher.fail_all(error) == 1
    dispatcher.remove_after_step("key")
    dispatcher.deliver(step())
    assert len(calls) == 2
