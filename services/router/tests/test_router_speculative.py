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


def test_the_longest_part_counts_and_later_decisions_replace_earlier_ones() -> None:
    index = SpeculativeIndex(ttl_s=5)
    index.add(chain(32), "short", 0.0)
    index.add(chain(64), "long", 1.0)
    assert index.match(chain(64), 2.0) == {"long": 64}
    assert index.match(chain(32), 2.0) == {"long": 32}


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
