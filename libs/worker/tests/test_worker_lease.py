import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tandem_common.errors import Conflict, InvalidRequest, Overloaded, PermissionDenied
from tandem_worker.lease import Lease, LeasePhase, LeaseTable, Verdict


def lease(lease_id: str = "l", first_block: int = 0, num_blocks: int = 4, deadline_s: float = 10.0) -> Lease:
    return Lease(
        lease_id=lease_id,
        request_id="r",
        peer_worker_id="p",
        first_block=first_block,
        num_blocks=num_blocks,
        deadline_s=deadline_s,
    )


def reserved(**fields: object) -> tuple[LeaseTable, Lease]:
    table, entered = LeaseTable(8), lease(**fields)  # type: ignore[arg-type]
    table.reserve(entered)
    return table, entered


def copy(table: LeaseTable, first_block: int, num_blocks: int) -> None:
    entered, verdict = table.begin("l", first_block, num_blocks, 0.0)
    assert verdict is Verdict.COPY
    assert table.finish(entered, first_block, num_blocks, copied=True)


def test_a_handoff_goes_through_its_phases() -> None:
    table, entered = reserved()
    assert entered.phase is LeasePhase.RESERVED
    table.stage(entered)
    assert entered.phase is LeasePhase.STAGED
    copy(table, 0, 3)
    assert entered.phase is LeasePhase.TRANSFERRING
    copy(table, 3, 1)
    assert entered.phase is LeasePhase.COMMITTED
    assert table.release(entered)
    assert entered.phase is LeasePhase.RELEASED
    assert len(table) == 0


def test_releasing_twice_is_as_good_as_once() -> None:
    table, entered = reserved()
    assert table.release(entered)
    assert table.release(entered)


def test_a_chunk_in_flight_is_discarded_when_its_lease_was_released() -> None:
    table, entered = reserved()
    table.begin("l", 0, 2, 0.0)
    table.begin("l", 2, 2, 0.0)
    assert not table.release(entered)
    assert len(table) == 1
    assert not table.finish(entered, 0, 2, copied=True)
    assert len(table) == 1
    assert not table.finish(entered, 2, 2, copied=True)
    assert len(table) == 0


def test_a_failed_chunk_can_be_copied_again() -> None:
    table, entered = reserved()
    table.begin("l", 0, 4, 0.0)
    assert not table.finish(entered, 0, 4, copied=False)
    copy(table, 0, 4)
    assert entered.phase is LeasePhase.COMMITTED


def test_a_duplicate_is_recognised_and_never_copied_once_committed() -> None:
    table, entered = reserved()
    copy(table, 0, 2)
    assert table.begin("l", 0, 2, 0.0) == (entered, Verdict.DUPLICATE)
    assert table.begin("l", 1, 2, 0.0)[1] is Verdict.COPY
    table.finish(entered, 1, 2, copied=True)
    copy(table, 3, 1)
    assert table.begin("l", 0, 4, 0.0)[1] is Verdict.DUPLICATE


@pytest.mark.parametrize(("first_block", "num_blocks"), [(0, 1), (1, 0), (1, 4), (4, 1), (7, 1)])
def test_blocks_outside_of_the_lease_are_refused(first_block: int, num_blocks: int) -> None:
    table, _ = reserved(first_block=1)
    with pytest.raises(InvalidRequest):
        table.begin("l", first_block, num_blocks, 0.0)


def test_unknown_released_and_expired_leases_are_refused() -> None:
    table, entered = reserved()
    for lease_id, now_s in (("other", 0.0), ("l", 10.0)):
        with pytest.raises(PermissionDenied):
            table.begin(lease_id, 0, 1, now_s)
    table.begin("l", 0, 1, 9.9)
    table.release(entered)
    with pytest.raises(PermissionDenied):
        table.begin("l", 1, 1, 0.0)


def test_a_sign_of_life_moves_the_deadline_forwards_only() -> None:
    table, entered = reserved()
    table.renew(entered, 20.0)
    table.renew(entered, 5.0)
    assert table.expired(19.9) == []
    assert table.expired(20.0) == [entered]


def test_the_table_is_bounded_and_ids_are_unique() -> None:
    table = LeaseTable(2)
    table.reserve(lease("a"))
    with pytest.raises(Conflict):
        table.reserve(lease("a"))
    table.reserve(lease("b"))
    with pytest.raises(Overloaded):
        table.reserve(lease("c"))


def test_a_lease_without_blocks_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        LeaseTable(2).reserve(lease(first_block=4))


class Leases(RuleBasedStateMachine):
    """Any order of events; the model is what each lease has in flight and was released or not."""

    @initialize()
    def start(self) -> None:
        self.table = LeaseTable(4)
        self.now_s = 0.0
        self.all: dict[str, Lease] = {}
        self.in_flight: list[tuple[Lease, int, int]] = []

    @rule(number=st.integers(0, 5), first_block=st.integers(0, 3), num_wanted=st.integers(1, 4))
    def reserve(self, number: int, first_block: int, num_wanted: int) -> None:
        name = str(number)
        entered = lease(name, first_block, first_block + num_wanted, self.now_s + 5)
        living = {old.lease_id for old in self.table.leases()}
        try:
            self.table.reserve(entered)
        except Conflict:
            assert name in living
        except Overloaded:
            assert len(living) == 4
        else:
            self.all[name] = entered

    @precondition(lambda self: self.all)
    @rule(data=st.data(), first_block=st.integers(0, 8), num_blocks=st.integers(0, 8))
    def begin(self, data: st.DataObject, first_block: int, num_blocks: int) -> None:
        chosen = self.all[data.draw(st.sampled_from(sorted(self.all)))]
        try:
            entered, verdict = self.table.begin(chosen.lease_id, first_block, num_blocks, self.now_s)
        except PermissionDenied:
            assert chosen.phase is LeasePhase.RELEASED or self.now_s >= chosen.deadline_s
        except InvalidRequest:
            assert not (chosen.first_block <= first_block < first_block + num_blocks <= chosen.num_blocks)
        else:
            assert entered is chosen
            if verdict is Verdict.COPY:
                self.in_flight.append((entered, first_block, num_blocks))

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), copied=st.booleans())
    def finish(self, data: st.DataObject, copied: bool) -> None:
        entered, first_block, num_blocks = self.in_flight.pop(
            data.draw(st.integers(0, len(self.in_flight) - 1))
        )
        released = entered.phase is LeasePhase.RELEASED
        counts = self.table.finish(entered, first_block, num_blocks, copied=copied)
        assert counts == (copied and not released)

    @precondition(lambda self: self.all)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        chosen = self.all[data.draw(st.sampled_from(sorted(self.all)))]
        free = self.table.release(chosen)
        assert free == all(entered is not chosen for entered, _, _ in self.in_flight)

    @rule(seconds=st.floats(0.1, 4))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        assert all(entered.deadline_s <= self.now_s for entered in self.table.expired(self.now_s))

    @invariant()
    def holds(self) -> None:
        self.table.check_integrity()
        for entered in self.table.leases():
            flying = sum(1 for other, _, _ in self.in_flight if other is entered)
            assert entered.num_in_flight == flying

    def teardown(self) -> None:
        for entered, first_block, num_blocks in self.in_flight:
            self.table.finish(entered, first_block, num_blocks, copied=True)
        for entered in self.table.leases():
            assert self.table.release(entered)
        assert len(self.table) == 0


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
