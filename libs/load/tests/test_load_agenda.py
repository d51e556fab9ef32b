import itertools
import json
from pathlib import Path

import pytest
from tandem_load.agenda import Agenda, Entry
from tandem_load.conversation import Asker, PromptShape
from tandem_load.dialect import Dialect
from tandem_load.lengths import Lengths
from tandem_load.load_task import Arrivals, Clients, LoadTask, Replay, Traffic
from tandem_load.target import Target

DIALECT = Dialect(model="m")


def task(traffic: Traffic, *, num_turns: int = 1, **changes: object) -> LoadTask:
    fixed = Lengths.parse("5")
    values: dict[str, object] = {
        "target": Target.parse("http://host"),
        "dialect": DIALECT,
        "shape": PromptShape(input_tokens=fixed, output_tokens=fixed, num_turns=num_turns, think_s=0.5),
        "traffic": traffic,
        "warmup_s": 0.0,
        "duration_s": 10.0,
    }
    return LoadTask(**(values | changes))  # type: ignore[arg-type]


def agenda(*arguments: object, **options: object) -> Agenda:
    made = task(*arguments, **options)  # type: ignore[arg-type]
    return Agenda(made, Asker(DIALECT, seed=1))


def take_all(some: Agenda) -> list[Entry]:
    taken = []
    while (due_s := some.next_due_s) is not None:
        entry = some.take(due_s)
        assert entry is not None
        taken.append(entry)
    return taken


def test_each_client_of_a_closed_loop_asks_again_when_it_was_answered_until_the_window_ends() -> None:
    some = agenda(Clients(count=2))
    first, second = take_all(some)
    assert (first.due_s, second.due_s) == (0.0, 0.0)
    first.conversation.next_ask()
    some.on_answered(first.conversation, 4.0)
    assert [entry.due_s for entry in take_all(some)] == [4.0]
    second.conversation.next_ask()
    some.on_answered(second.conversation, 10.5)
    assert some.next_due_s is None


def test_an_open_loop_sends_at_its_rate_whatever_is_answered() -> None:
    dues = [entry.due_s for entry in take_all(agenda(Arrivals(rate=50.0)))]
    assert len(dues) == pytest.approx(500, rel=0.15)
    assert dues == sorted(dues)
    gaps = [b - a for a, b in itertools.pairwise(dues)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance == pytest.approx(mean**2, rel=0.4)  # as of an exponential distribution
    even = [entry.due_s for entry in take_all(agenda(Arrivals(rate=2.0, evenly=True)))]
    assert even == pytest.approx([0.5 * i for i in range(1, 20)])


def test_the_rate_counts_requests_and_later_turns_come_after_the_answer() -> None:
    some = agenda(Arrivals(rate=4.0, evenly=True), num_turns=4)
    entry = some.take(1.0)
    assert entry is not None
    assert entry.due_s == pytest.approx(1.0)  # one conversation of four requests a second
    entry.conversation.next_ask()
    entry.conversation.answered("x")
    some.on_answered(entry.conversation, 1.2)
    assert [round(e.due_s, 6) for e in take_all(some)][:2] == [1.7, 2.0]


def test_after_a_failure_only_a_closed_loop_goes_on_and_waits() -> None:
    closed, still_open = agenda(Clients(count=1)), agenda(Arrivals(rate=0.001))
    take_all(closed)
    closed.on_failed(3.0)
    assert [entry.due_s for entry in take_all(closed)] == [3.0]
    still_open.on_failed(3.0)
    assert still_open.next_due_s is None


def test_the_warm_up_comes_before_the_window_and_is_not_counted() -> None:
    some = agenda(Arrivals(rate=1.0, evenly=True), warmup_s=3.5, duration_s=None, max_requests=2)
    assert [entry.due_s for entry in take_all(some)] == [-2.5, -1.5, -0.5, 0.5, 1.5]
    assert some.window_s == 2.5  # where the next one would have come


def test_a_closed_loop_of_so_many_requests_ends_with_them() -> None:
    some = agenda(Clients(count=3), duration_s=None, max_requests=2)
    first, second = take_all(some)
    for entry in (first, second):
        entry.conversation.next_ask()
        some.on_answered(entry.conversation, 1.0)
    assert some.next_due_s is None
    assert some.window_s == float("inf")  # open until the last answer


def trace(tmp_path: Path, *times_s: float) -> str:
    path = tmp_path / "t.jsonl"
    rows = [
        {"timestamp": 1e3 * t, "input_length": 1000, "output_length": 10, "hash_ids": [1, 2]} for t in times_s
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_a_trace_is_replayed_faster_and_shorter(tmp_path: Path) -> None:
    replay = Replay(path=trace(tmp_path, 5.0, 6.0, 9.0), speed=2.0, length_scale=0.1)
    some = agenda(replay, duration_s=None)
    taken = take_all(some)
    assert [entry.due_s for entry in taken] == [0.0, 0.5, 2.0]
    assert some.window_s == 3.0  # two gaps of one second in the mean, and one more
    body = json.loads(taken[0].conversation.next_ask().body)
    assert body["max_tokens"] == 1
    assert len(body["messages"][0]["content"].split()) == 100
