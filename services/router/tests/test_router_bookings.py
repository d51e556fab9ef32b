from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tandem_router.bookings import BookedLoad, Booking, Bookings


def booking(worker_id: str, time_s: float = 0.0, *, epoch: int = 1, tokens: int = 10) -> Booking:
    load = BookedLoad(num_sequences=1, queued_prefill_tokens=tokens, num_blocks=2)
    return Booking(worker_id=worker_id, epoch=epoch, load=load, time_s=time_s)


def make(max_per_worker: int = 100) -> Bookings:
    return Bookings(max_age_s=5.0, max_per_worker=max_per_worker)


def test_bookings_add_up_until_a_beat_lists_the_request() -> None:
    bookings = make()
    bookings.add("r1", [booking("p"), booking("d", tokens=0)])
    bookings.add("r2", [booking("p", tokens=5)])
    assert bookings.total("p") == BookedLoad(num_sequences=2, queued_prefill_tokens=15, num_blocks=4)

    assert bookings.observe("p", 1, ["r1", "never-seen"], 0.0)
    assert bookings.total("p").queued_prefill_tokens == 5
    assert bookings.count("d") == 1, "each worker reports for itself"
    assert not bookings.observe("p", 1, ["r1"], 0.0)
    assert bookings.total("unknown") == BookedLoad()


def test_another_incarnation_of_a_worker_owes_nothing() -> None:
    bookings = make()
    bookings.add("r1", [booking("p", epoch=1)])
    bookings.add("r2", [booking("p", epoch=2)])
    assert bookings.observe("p", 2, [], 0.0)
    assert bookings.count("p") == 1


def test_a_booking_that_nobody_reports_is_dropped_by_age() -> None:
    bookings = make()
    bookings.add("r1", [booking("p", 0.0), booking("d", 0.0)])
    bookings.add("r2", [booking("p", 3.0)])
    assert bookings.expire(4.9) == set()
    assert bookings.expire(5.0) == {"p", "d"}
    assert (bookings.count("p"), bookings.count("d"), len(bookings)) == (1, 0, 1)


def test_what_waits_for_room_on_one_worker_soon_counts_no_more_on_the_other() -> None:
    bookings = make()
    bookings.add("r1", [booking("p"), booking("d", tokens=0)])
    bookings.add("r2", [booking("p", tokens=5), booking("d", tokens=0)])
    assert bookings.observe("d", 1, ["r1"], 0.5)
    assert bookings.expire(1.4) == set(), "the prefill worker may not have had a beat since it was asked"
    assert bookings.expire(1.6) == {"p"}
    assert bookings.total("p").queued_prefill_tokens == 5, "who was reported nowhere is on the way"
    assert not bookings.has("r1")
    bookings.check_integrity()


def test_a_request_that_is_booked_anew_counts_everywhere_again() -> None:
    bookings = make()
    bookings.add("r1", [booking("p"), booking("d")])
    bookings.observe("d", 1, ["r1"], 0.0)
    bookings.add("r1", [booking("p", 0.5), booking("e", 0.5)])
    assert bookings.expire(1.2) == set()


def test_booking_a_request_again_replaces_its_load() -> None:
    bookings = make()
    bookings.add("r1", [booking("p", tokens=10)])
    bookings.add("r1", [booking("p", 1.0, tokens=3)])
    assert bookings.total("p").queued_prefill_tokens == 3
    assert bookings.count("p") == 1


def test_a_request_is_withdrawn_from_all_its_workers() -> None:
    bookings = make()
    bookings.add("r1", [booking("p"), booking("d")])
    bookings.add("r2", [booking("d")])
    assert bookings.withdraw("r1") == {"p", "d"}
    assert bookings.withdraw("r1") == set()
    assert len(bookings) == 1


def test_the_oldest_booking_makes_room_for_the_newest() -> None:
    bookings = make(max_per_worker=2)
    for i in range(4):
        bookings.add(f"r{i}", [booking("p", float(i), tokens=i)])
    assert bookings.total("p").queued_prefill_tokens == 2 + 3
    bookings.check_integrity()


def test_workers_that_are_gone_are_forgotten() -> None:
    bookings = make()
    bookings.add("r1", [booking("p"), booking("d")])
    bookings.retain({"d": None})
    assert (bookings.count("p"), bookings.count("d")) == (0, 1)


WORKERS = st.sampled_from(["a", "b", "c"])
REQUESTS = st.sampled_from([f"r{i}" for i in range(6)])


class BookingsAgainstAList(RuleBasedStateMachine):
    """Bookings do what a plain dictionary by worker and request would do."""

    def __init__(self) -> None:
        super().__init__()
        self.bookings = make(max_per_worker=4)
        self.model: dict[tuple[str, str], Booking] = {}
        self.held_up: dict[str, float] = {}
        self.now_s = 0.0

    @rule(request=REQUESTS, workers=st.sets(WORKERS, min_size=1, max_size=2), epoch=st.integers(1, 2))
    def add(self, request: str, workers: set[str], epoch: int) -> None:
        made = [booking(w, self.now_s, epoch=epoch, tokens=len(w) + len(self.model)) for w in sorted(workers)]
        self.bookings.add(request, made)
        self.held_up.pop(request, None)
        for each in made:
            self.model.pop((each.worker_id, request), None)
            self.model[each.worker_id, request] = each
            mine = [key for key in self.model if key[0] == each.worker_id]
            if len(mine) > 4:
                del self.model[mine[0]]
        self.forget_held_up()

    @rule(worker=WORKERS, epoch=st.integers(1, 2), reported=st.lists(REQUESTS, max_size=3))
    def observe(self, worker: str, epoch: int, reported: list[str]) -> None:
        before = len(self.model)
        for request in reported:
            if (worker, request) in self.model:
                self.held_up.setdefault(request, self.now_s + 1.0)
        self.model = {
            (w, r): b
            for (w, r), b in self.model.items()
            if w != worker or (r not in reported and b.epoch == epoch)
        }
        assert self.bookings.observe(worker, epoch, reported, self.now_s) == (len(self.model) < before)
        self.forget_held_up()

    @rule(seconds=st.floats(0, 4))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.bookings.expire(self.now_s)
        self.model = {
            (w, r): b
            for (w, r), b in self.model.items()
            if self.now_s - b.time_s < 5.0 and self.now_s < self.held_up.get(r, math.inf)
        }
        self.forget_held_up()

    @rule(request=REQUESTS)
    def withdraw(self, request: str) -> None:
        expected = {w for w, r in self.model if r == request}
        assert self.bookings.withdraw(request) == expected
        self.model = {key: b for key, b in self.model.items() if key[1] != request}
        self.forget_held_up()

    def forget_held_up(self) -> None:
        booked = {request for _, request in self.model}
        self.held_up = {r: until_s for r, until_s in self.held_up.items() if r in booked}

    @invariant()
    def totals_agree(self) -> None:
        self.bookings.check_integrity()
        assert len(self.bookings) == len(self.model)
        for worker in "abc":
            mine = [b.load for (w, _), b in self.model.items() if w == worker]
            assert self.bookings.count(worker) == len(mine)
            assert self.bookings.total(worker).queued_prefill_tokens == sum(
                load.queued_prefill_tokens for load in mine
            )


TestBookingsAgainstAList = BookingsAgainstAList.TestCase
TestBookingsAgainstAList.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
