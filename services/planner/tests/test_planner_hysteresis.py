from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tandem_planner.hysteresis import Steady
from tandem_planner.plan import Proposal
from tandem_planner.split import Split

HERE = Split(num_prefill=2, num_decode=2)
THERE = Split(num_prefill=3, num_decode=1)
ELSEWHERE = Split(num_prefill=1, num_decode=3)


def proposal(
    desired: Split = HERE,
    smallest: Split | None = HERE,
    *,
    current: Split = HERE,
    confident: bool = True,
) -> Proposal:
    return Proposal(
        model="m", current=current, desired=desired, smallest=smallest, reason="because", confident=confident
    )


def steady() -> Steady:
    return Steady(num_to_switch=3, num_to_fall=4)


def test_another_split_is_advised_after_it_was_proposed_three_times_in_a_row() -> None:
    held = steady()
    assert [held.steadied(proposal(THERE)).desired for _ in range(4)] == [HERE, HERE, THERE, THERE]


def test_proposals_that_alternate_change_nothing() -> None:
    held = steady()
    for _ in range(20):
        assert held.steadied(proposal(THERE)).desired == HERE
        assert held.steadied(proposal(HERE)).desired == HERE
        assert held.steadied(proposal(ELSEWHERE)).desired == HERE


def test_the_reason_says_that_the_advice_is_held() -> None:
    held = steady()
    assert "advice stays 2 prefill + 2 decode" in held.steadied(proposal(THERE)).reason
    assert held.steadied(proposal(HERE)).reason == "because"


def test_more_workers_are_needed_at_once_and_fewer_after_a_while() -> None:
    held = steady()
    big, small = Split(num_prefill=4, num_decode=2), Split(num_prefill=1, num_decode=1)
    assert held.steadied(proposal(smallest=small)).smallest == small
    assert held.steadied(proposal(smallest=big)).smallest == big
    seen = [held.steadied(proposal(smallest=small)).smallest for _ in range(5)]
    assert seen == [big, big, big, small, small]


def test_a_fall_goes_to_the_most_that_was_needed_on_the_way() -> None:
    held = steady()
    held.steadied(proposal(smallest=Split(num_prefill=5, num_decode=5)))
    needs = [(1, 3), (2, 1), (1, 1), (1, 2)]
    last = [held.steadied(proposal(smallest=Split(num_prefill=p, num_decode=d))).smallest for p, d in needs]
    assert last[-1] == Split(num_prefill=2, num_decode=3)


def test_the_figures_follow_what_is_held() -> None:
    held = steady()
    held.steadied(proposal(smallest=Split(num_prefill=5, num_decode=1)))
    advice = held.steadied(proposal(smallest=Split(num_prefill=1, num_decode=1)))
    assert advice.figures["needed_num_prefill"] == 5.0


def test_other_workers_make_old_advice_void() -> None:
    held = steady()
    for _ in range(3):
        held.steadied(proposal(THERE))
    moved = Split(num_prefill=2, num_decode=1)
    assert held.steadied(proposal(moved, current=moved)).desired == moved


def test_gaps_in_the_data_neither_change_nor_forget_advice() -> None:
    held = steady()
    for _ in range(3):
        held.steadied(proposal(THERE))
    blind = proposal(HERE, None, confident=False)
    assert held.steadied(blind) == blind
    assert held.steadied(proposal(THERE)).desired == THERE


@given(wanted=st.lists(st.sampled_from([HERE, THERE, ELSEWHERE]), min_size=1, max_size=60))
def test_advice_changes_only_to_what_was_just_proposed_three_times(wanted: list[Split]) -> None:
    held, before = steady(), HERE
    for index, split in enumerate(wanted):
        advice = held.steadied(proposal(split)).desired
        if advice != before:
            assert wanted[max(0, index - 2) : index + 1] == [advice] * 3
        before = advice
