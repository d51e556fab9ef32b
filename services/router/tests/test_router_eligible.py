from __future__ import annotations

import pytest
from router_fakes import decode_worker, make_query, make_worker, prefill_worker, view_of
from tandem_common.errors import InvalidRequest, NotFound, Unavailable
from tandem_router.eligible import Eligible, eligible_workers
from tandem_router.view import WorkerRole


def ids(eligible: Eligible) -> tuple[list[str], list[str]]:
    return (
        [worker.facts.worker_id for worker in eligible.prefill],
        [worker.facts.worker_id for worker in eligible.decode],
    )


def test_an_unknown_model_is_refused_with_the_names_of_those_served() -> None:
    view = view_of(decode_worker("a"), decode_worker("b", model="large"))
    with pytest.raises(NotFound, match=r"'huge'; served now: large, tiny"):
        eligible_workers(make_query(model="huge"), view)
    with pytest.raises(NotFound, match="served now: none"):
        eligible_workers(make_query(), view_of())


def test_workers_of_other_models_are_not_even_mentioned() -> None:
    eligible = eligible_workers(make_query(), view_of(decode_worker("a"), decode_worker("b", model="large")))
    assert ids(eligible) == ([], ["a"])
    assert eligible.excluded == {}


def test_a_both_worker_is_on_both_sides() -> None:
    view = view_of(make_worker("b", WorkerRole.BOTH), prefill_worker("p"), decode_worker("d"))
    assert ids(eligible_workers(make_query(), view)) == (["b", "p"], ["b", "d"])


def test_failed_draining_and_small_workers_are_left_out_with_the_reason() -> None:
    view = view_of(
        decode_worker("draining", draining=True),
        decode_worker("failed"),
        decode_worker("few-blocks", num_blocks=62),
        decode_worker("good"),
        decode_worker("short", max_context_tokens=999),
        prefill_worker("p-small", num_blocks=62),
    )
    eligible = eligible_workers(make_query(1000, excluded_worker_ids=frozenset({"failed"})), view)
    assert ids(eligible) == ([], ["good"])
    assert eligible.excluded == {
        "draining": "draining",
        "failed": "failed this request before or excluded by it",
        "few-blocks": "62 blocks cannot hold the sequence",
        "short": "context of 999 tokens is too short",
        "p-small": "62 blocks cannot hold the sequence",
    }


def test_workers_dearer_than_the_request_allows_are_left_out_on_both_sides() -> None:
    view = view_of(
        prefill_worker("p-cheap", price=0.1),
        prefill_worker("p-dear", price=2.0),
        decode_worker("d-cheap", price=0.5),
        decode_worker("d-dear", price=0.6),
        decode_worker("d-free"),
    )
    eligible = eligible_workers(make_query(max_price=0.5), view)
    assert ids(eligible) == (["p-cheap"], ["d-cheap", "d-free"])
    assert eligible.excluded == dict.fromkeys(("p-dear", "d-dear"), "dearer than the request allows")
    assert ids(eligible_workers(make_query(max_price=0.0), view)) == ([], ["d-free"])
    with pytest.raises(Unavailable, match="1 dearer than the request allows"):
        eligible_workers(make_query(max_price=0.1), view_of(decode_worker("d", price=0.2)))


def test_a_prompt_that_fills_the_context_is_taken() -> None:
    view = view_of(decode_worker("d", max_context_tokens=1008, num_blocks=63))
    assert ids(eligible_workers(make_query(1008, max_tokens=1), view)) == ([], ["d"])


def test_a_worker_without_room_for_the_whole_answer_serves_only_if_none_has_it() -> None:
    query = make_query(1000, max_tokens=600)
    tight, roomy = decode_worker("tight", num_blocks=90), decode_worker("roomy", num_blocks=100)
    eligible = eligible_workers(query, view_of(tight, roomy))
    assert ids(eligible) == ([], ["roomy"])
    assert eligible.excluded == {"tight": "90 blocks cannot hold the sequence and 600 new tokens"}
    assert ids(eligible_workers(query, view_of(tight))) == ([], ["tight"])


def test_nobody_to_decode_is_unavailable_with_the_reasons_but_without_ids() -> None:
    view = view_of(prefill_worker("p"), decode_worker("d0", draining=True), decode_worker("d1"))
    with pytest.raises(Unavailable) as caught:
        eligible_workers(make_query(excluded_worker_ids=frozenset({"d1"})), view)
    assert "1 draining, 1 failed this request before or excluded by it" in caught.value.message
    assert "d1" not in caught.value.message
    with pytest.raises(Unavailable, match="no decode worker"):
        eligible_workers(make_query(), view_of(prefill_worker("p")))


def test_a_sequence_that_no_worker_could_ever_hold_is_the_requests_fault() -> None:
    view = view_of(decode_worker("d0", num_blocks=10), decode_worker("d1", max_context_tokens=100))
    with pytest.raises(InvalidRequest, match="1000 tokens"):
        eligible_workers(make_query(1000), view)


def test_a_sequence_that_a_draining_worker_could_hold_may_be_tried_again() -> None:
    view = view_of(decode_worker("d0", num_blocks=10), decode_worker("d1", draining=True))
    with pytest.raises(Unavailable):
        eligible_workers(make_query(1000), view)
