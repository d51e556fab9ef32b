from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from router_fakes import decode_worker, make_query, prefill_worker, view_of
from tandem_router.affinity import Sessions
from tandem_router.policies import Predictive
from tandem_router.query import ROUTE_LIMITS
from tandem_router.speculative import SpeculativeIndex


def chain(length: int, salt: int = 0) -> bytes:
    return b"".join(bytes([salt, i % 256, i // 256]) + bytes(13) for i in range(length))


def test_a_routed_prefix_is_expected_on_its_worker_until_the_time_is_over() -> None:
    index = SpeculativeIndex(ttl_s=5)
    index.add(chain(100), "w1", 0.0)
    assert index.match(chain(100), 4.9) == {"w1": 100}
    assert index.match(chain(120), 4.9) == {"w1": 100} or index.match(chain(120), 4.9) == {"w1": 96}
    assert index.match(chain(100), 5.0) == {}
    assert index.match(chain(100, salt=1), 0.0) == {}


def test_the_longest_part_counts_on_all_that_will_hold_it() -> None:
    index = SpeculativeIndex(ttl_s=5)
    index.add(chain(32), "short", 0.0)
    index.add(chain(64), "long", 1.0)
    assert index.match(chain(64), 2.0) == {"long": 64}
    assert index.match(chain(32), 2.0) == {"short": 32, "long": 32}
    assert index.match(chain(32), 5.5) == {"long": 32}


def test_of_a_block_the_workers_noted_last_are_remembered() -> None:
    index = SpeculativeIndex(ttl_s=5)
    for number in range(40):
        index.add(chain(4), f"w{number}", number / 100)
    assert index.match(chain(4), 0.5) == {f"w{number}": 4 for number in range(24, 40)}


def test_demand_is_what_was_asked_for_lately() -> None:
    index = SpeculativeIndex(ttl_s=5)
    for number in range(200):
        index.add(chain(100 + number), "w", 2 + number / 100)
    now_s = 4.0
    # A hundred per second: all of the last second, and what is left of the one before.
    assert 80 <= index.demand(chain(400), 100, now_s) <= 100
    assert index.demand(chain(400), 250, now_s) < 60, "most were shorter"
    assert index.demand(chain(400), 100, now_s + 3) < 5
    assert index.demand(chain(400), 3, now_s) == 0.0
    assert index.demand(chain(400, salt=1), 100, now_s) == 0.0


def test_a_request_owes_all_that_nobody_holds_and_a_share_of_what_many_ask_for() -> None:
    cold = make_query(1600, cached_blocks={"w": 75})
    assert cold.owed_share(1600, 16) == 1.0
    hot = make_query(1600, cached_blocks={"w": 75, "v": 20}, demand=3.0)
    assert hot.owed_share(1600, 16) == (400 + 1200 / 4) / 1600
    assert hot.owed_share(400, 16) == 1.0, "nobody holds more"


def test_a_time_of_zero_turns_it_off() -> None:
    index = SpeculativeIndex(ttl_s=0)
    index.add(chain(64), "w", 1.0)
    assert index.match(chain(64), 1.0) == {}
    assert len(index) == 0


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3), st.floats(0, 3)), max_size=30))
def test_it_stays_within_its_bounds(steps: list[tuple[int, int, float]]) -> None:
    index = SpeculativeIndex(ttl_s=2, capacity=5)
    now_s = 0.0
    for length, salt, seconds in steps:
        now_s += seconds
        index.add(chain(length, salt), "w", now_s)
        index.check_integrity()
        assert index.match(chain(length, salt), now_s) in ({}, {"w": length})


def test_sessions_belong_to_tenants_and_end() -> None:
    view = view_of(prefill_worker("p"), decode_worker("d"))
    decision = Predictive().choose(make_query(4000), view, ROUTE_LIMITS)
    sessions = Sessions(ttl_s=10, capacity=2)
    sessions.note("a", "s", decision, 0.0)
    sessions.note("a", "", decision, 0.0)
    assert sessions.preferred("a", "s", 9.0) == {"p", "d"}
    assert sessions.preferred("b", "s", 9.0) == frozenset()
    assert sessions.preferred("a", "s", 10.0) == frozenset()
    assert len(sessions) == 1
    for i in range(5):
        sessions.note("a", f"s{i}", decision, 1.0)
    assert len(sessions) == 2
