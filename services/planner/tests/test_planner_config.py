from __future__ import annotations

import pytest
from tandem_common.config import ConfigError, load_config
from tandem_planner.config import PlannerConfig


def load(*argv: str, **environ: str) -> PlannerConfig:
    return load_config(PlannerConfig, "planner", argv, environ)


def test_targets_come_from_environment_and_flags() -> None:
    config = load("--itl-ms", "20", TANDEM_PLANNER_TTFT_MS="250")
    assert (config.targets().ttft_ms, config.targets().itl_ms) == (250.0, 20.0)


@pytest.mark.parametrize(
    ("flag", "value", "what"),
    [
        ("--percentile", "95", "percentile = 95"),
        ("--ttft-ms", "0", "ttft_ms = 0"),
        ("--min-observed-s", "100", "at most window_s"),
        ("--interval-s", "0", "interval_s = 0"),
    ],
)
def test_values_that_cannot_be_end_with_their_name(flag: str, value: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        load(flag, value)
