from __future__ import annotations

import math

import pytest
from tandem_common.errors import InvalidRequest
from tandem_planner.targets import Targets


def test_targets_survive_the_wire() -> None:
    targets = Targets(ttft_ms=500.0, itl_ms=50.0, percentile=0.95)
    assert Targets.from_proto(targets.to_proto()) == targets


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ttft_ms", 0.0),
        ("ttft_ms", -1.0),
        ("ttft_ms", math.nan),
        ("itl_ms", math.inf),
        ("itl_ms", 1e9),
        ("percentile", 0.0),
        ("percentile", 1.0),
        ("percentile", 95.0),
        ("percentile", math.nan),
    ],
)
def test_values_that_mean_nothing_are_refused_by_name(name: str, value: float) -> None:
    values = {"ttft_ms": 500.0, "itl_ms": 50.0, "percentile": 0.95, name: value}
    with pytest.raises(InvalidRequest, match=name) as caught:
        Targets(**values)
    assert caught.value.param == name


def test_meeting_each_target_at_its_share_meets_both_at_the_percentile() -> None:
    targets = Targets(ttft_ms=500.0, itl_ms=50.0, percentile=0.9)
    assert targets.share_each**2 == pytest.approx(0.9)
