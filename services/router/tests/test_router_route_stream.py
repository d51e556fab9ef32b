"""Many calls over one stream, without gRPC and without decisions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from tandem.v1 import router_pb2 as pb
from tandem_common.errors import Overloaded, TandemError
from tandem_router.dispatcher import Dispatched, Pending
from tandem_router.route_stream import MAX_OPEN_CALLS, RouteStream


class Desk:
    """Starts "now...", lets "wait..." wait, refuses "no..." and breaks at anything else."""

    def __init__(self) -> None:
        self.pending: dict[str, Pending] = {}
        self.left: list[Pending] = []
        self.num_refused = 0
        self.observed: list[float] = []

    def observe(self, observations: Sequence[pb.TtftObservation], served: Sequence[pb.ServedTokens]) -> None:
        self.observed += [seen.observed_ttft_ms for seen in observations] + [a.num_new_tokens for a in served]

    def begin(self, query: pb.RouteQuery, traceparent: str) -> pb.RouteResponse | Pending:
        if query.request_id.startswith("now"):
            return pb.RouteResponse(decode=pb.WorkerRef(worker_id=query.request_id))
        if query.request_id.startswith("wait"):
            future: asyncio.Future[Dispatched] = asyncio.get_running_loop().create_future()
            self.pending[query.request_id] = pending = Pending(None, future)  # type: ignore[arg-type]
            return pending
        if query.request_id.startswith("no"):
            raise Overloaded("full", retry_after_ms=70)
        raise ZeroDivisionError

    def end(self, query: pb.RouteQuery, dispatched: Dispatched) -> pb.RouteResponse:
        return pb.RouteResponse(decode=pb.WorkerRef(worker_id=f"{dispatched} {query.request_id}"))

    def refused(self, query: pb.RouteQuery, error: TandemError) -> None:
        self.num_refused += 1

    def leave(self, pending: Pending) -> None:
        self.left.append(pending)


class Talk:
    def __init__(self) -> None:
        self.desk = Desk()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stream = RouteStream(self.desk, self.ended)
        self.written: list[dict[int, str]] = []
        self.task = asyncio.create_task(self.stream.writer.run(self._write))

    async def _write(self, response: pb.RouteStreamResponse) -> None:
        self.written.append({answer.call_id: _shown(answer) for answer in response.answers})

    async def say(self, *calls: str, cancel: tuple[int, ...] = ()) -> None:
        """Each call is "id request_id"."""
        made = [
            pb.RouteCall(call_id=int(number), query=pb.RouteQuery(request_id=request_id))
            for number, request_id in (call.split() for call in calls)
        ]
        self.stream.handle(pb.RouteStreamRequest(calls=made, cancelled_call_ids=cancel))
        await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


def _shown(answer: pb.RouteAnswer) -> str:
    match answer.WhichOneof("answer"):
        case "route":
            return answer.route.decode.worker_id
        case "failure":
            return f"{answer.failure.code} {answer.failure.message} {answer.failure.retry_after_ms}"
        case kind:
            return str(kind)


@pytest.fixture
async def talk():
    talk = Talk()
    yield talk
    talk.task.cancel()
    await asyncio.gather(talk.task, return_exceptions=True)


async def test_calls_of_one_message_are_answered_in_one_message_each_for_itself(talk: Talk) -> None:
    await talk.say("7 now1", "3 no", "9 breaks", "4 wait", "5 now2")
    assert talk.written == [{7: "now1", 3: "8 full 70", 9: "13 internal error 0", 4: "waiting", 5: "now2"}]
    assert talk.desk.num_refused == 1


async def test_those_that_waited_are_answered_when_they_have_an_outcome(talk: Talk) -> None:
    await talk.say("1 wait1", "2 wait2", "3 wait3")
    talk.desk.pending["wait2"].future.set_result("late")  # type: ignore[arg-type]
    talk.desk.pending["wait1"].future.set_exception(Overloaded("too long", retry_after_ms=5))
    await talk.settle()
    assert talk.written[1:] == [{2: "late wait2", 1: "8 too long 5"}]
    assert talk.desk.left == [talk.desk.pending["wait2"], talk.desk.pending["wait1"]]
    assert talk.desk.num_refused == 1


async def test_cancelled_calls_leave_the_queue_and_get_no_answer(talk: Talk) -> None:
    await talk.say("1 wait1", "2 now")
    await talk.say(cancel=(1, 2, 99))
    assert talk.desk.left == [talk.desk.pending["wait1"]]
    talk.desk.pending["wait1"].future.set_result("late")  # type: ignore[arg-type]
    await talk.settle()
    assert len(talk.written) == 1


async def test_the_end_of_the_stream_takes_all_out_of_the_queue(talk: Talk) -> None:
    await talk.say("1 wait1", "2 wait2")
    talk.stream.close()
    assert talk.desk.left == list(talk.desk.pending.values())


async def test_too_many_that_wait_and_ids_used_twice_end_the_stream(talk: Talk) -> None:
    await talk.say("1 wait1")
    with pytest.raises(Overloaded):
        await talk.say("1 wait2")
    with pytest.raises(Overloaded):
        await talk.say(*(f"{2 + i} wait{2 + i}" for i in range(MAX_OPEN_CALLS)))


async def test_what_became_of_earlier_requests_is_passed_on(talk: Talk) -> None:
    talk.stream.handle(
        pb.RouteStreamRequest(
            observations=[pb.TtftObservation(observed_ttft_ms=7)], served=[pb.ServedTokens(num_new_tokens=9)]
        )
    )
    await talk.settle()
    assert talk.desk.observed == [7, 9]
    assert talk.written == []
