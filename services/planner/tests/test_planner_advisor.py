from __future__ import annotations

import asyncio

from tandem_planner.advisor import Advisor
from tandem_planner.decision import first_id_under
from tandem_planner.observations import Observations, Traffic, Workers
from tandem_planner.plan import Policy
from tandem_planner.split import Split
from tandem_planner.targets import Targets

TARGETS = Targets(ttft_ms=500.0, itl_ms=50.0, percentile=0.95)


def idle(model: str = "m", num_decode: int = 1, observed_s: float = 60.0) -> Observations:
    return Observations(
        model=model,
        workers=Workers(split=Split(num_prefill=1, num_decode=num_decode)),
        traffic=Traffic(observed_s=observed_s),
    )


def advisor() -> Advisor:
    return Advisor(TARGETS, Policy(), num_to_switch=3, num_to_fall=3)


def test_a_plan_that_says_the_same_keeps_its_id_and_time_and_gets_new_figures() -> None:
    one = advisor()
    (first,) = one.decide([idle()], unix_ms=1000, lease_token=1)
    assert one.decide([idle(observed_s=50.0)], unix_ms=2000, lease_token=1) == []
    kept = one.decisions["m"]
    assert (kept.id, kept.unix_ms) == (first.id, 1000)
    assert kept.proposal.figures["observed_s"] == 50.0
    (second,) = one.decide([idle(num_decode=2)], unix_ms=3000, lease_token=1)
    assert second.id == first.id + 1


def test_models_that_are_gone_are_forgotten() -> None:
    one = advisor()
    one.decide([idle("x"), idle("y")], unix_ms=0, lease_token=0)
    one.decide([idle("y")], unix_ms=0, lease_token=0)
    assert set(one.decisions) == {"y"}


def test_ids_under_a_later_lease_are_above_those_under_an_earlier_one() -> None:
    earlier, later = advisor(), advisor()
    for num_decode in range(1, 20):
        earlier.decide([idle(num_decode=num_decode)], unix_ms=0, lease_token=4)
    (decision,) = later.decide([idle()], unix_ms=0, lease_token=5)
    assert decision.id == first_id_under(5) > earlier.decisions["m"].id


def test_the_message_carries_everything() -> None:
    one = advisor()
    (decision,) = one.decide([idle(num_decode=3)], unix_ms=1_700_000_000_123, lease_token=1)
    message = decision.to_proto()
    assert message.time.ToMilliseconds() == 1_700_000_000_123
    assert (message.current.num_prefill, message.current.num_decode) == (1, 3)
    assert message.desired == message.current
    assert message.advisory
    assert message.confident
    assert message.reason == "no requests in 60 s; 1 prefill + 1 decode would do"
    assert message.figures["needed_num_decode"] == 1.0


async def test_a_watcher_gets_the_latest_first_and_then_each_new_decision_until_the_end() -> None:
    one = advisor()
    one.decide([idle()], unix_ms=0, lease_token=1)
    one.decide([idle(num_decode=2)], unix_ms=0, lease_token=1)
    seen: list[int] = []

    async def watch() -> None:
        seen.extend([decision.proposal.current.num_decode async for decision in one.watch()])

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        await asyncio.sleep(0)
        one.decide([idle(num_decode=3)], unix_ms=0, lease_token=1)
        one.decide([idle(num_decode=4)], unix_ms=0, lease_token=1)
        await asyncio.sleep(0)
        one.decide([idle(num_decode=5)], unix_ms=0, lease_token=1)
        await asyncio.sleep(0.01)
        one.close()
    assert seen == [2, 3, 4, 5]
