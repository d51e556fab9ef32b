from dataclasses import dataclass
from pathlib import Path

import pytest
from tandem_common.config import ConfigError, ServiceConfig, load_config, setting


@dataclass(frozen=True, kw_only=True)
class RouterLike(ServiceConfig):
    """A service of the tests."""

    policy: str = setting("predictive", "how to choose", choices=("predictive", "random"))
    weight: float = setting(1.5, "a number", minimum=0)
    labels: tuple[str, ...] = setting((), "some words")
    strict: bool = setting(False, "a switch")


def load(*argv: str, **environ: str) -> RouterLike:
    return load_config(RouterLike, "router", argv, environ)


def test_flags_win_over_the_environment_and_the_environment_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tandem.toml"
    file.write_text(
        'cluster = "file"\nlog_level = "error"\n[router]\nweight = 2\npolicy = "random"\n[worker]\nx = 1\n'
    )
    config = load("--config", str(file), "--weight", "4", TANDEM_ROUTER_WEIGHT="3", TANDEM_CLUSTER="env")
    assert (config.weight, config.cluster, config.policy, config.log_level) == (4.0, "env", "random", "error")


def test_a_service_variable_wins_over_the_shared_one() -> None:
    assert load(TANDEM_PORT="1", TANDEM_ROUTER_PORT="2").port == 2


def test_variables_of_other_services_are_left_alone() -> None:
    assert load(TANDEM_WORKER_WHATEVER="1") == RouterLike()


def test_lists_and_switches_are_parsed() -> None:
    config = load("--labels", "a, b", "--strict", "yes")
    assert (config.labels, config.strict) == (("a", "b"), True)


@pytest.mark.parametrize(
    ("argv", "environ", "expected"),
    [
        ([], {"TANDEM_ROUTER_WIEGHT": "1"}, "did you mean 'weight'"),
        ([], {"TANDEM_CLUSTRE": "x"}, "did you mean 'cluster'"),
        (["--weight", "heavy"], {}, "--weight = 'heavy': expected a number"),
        (["--weight", "-1"], {}, "weight = -1.0: must be at least 0"),
        (["--policy", "best"], {}, "must be one of predictive, random"),
        ([], {"TANDEM_PORT": "70000"}, "at most 65535"),
        ([], {"TANDEM_ROUTER_STRICT": "maybe"}, "expected true or false"),
        (["--cluster", "a b"], {}, "letters, digits"),
        (["--config", "/nonexistent.toml"], {}, "cannot read the configuration file"),
    ],
)
def test_what_is_wrong_is_named_with_the_fix(argv: list[str], environ: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load(*argv, **environ)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("clustre = 'x'", "did you mean 'cluster'"),
        ("[router]\npolcy = 'random'", "did you mean 'policy'"),
        ("[roter]\nx = 1", "did you mean 'router'"),
        ("[router]\nport = 'x'", "expected a whole number"),
        ("[router]\nport = true", "expected a whole number"),
        ("port = ", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, content: str, expected: str) -> None:
    file = tmp_path / "tandem.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=expected):
        load("--config", str(file))


def test_a_secret_never_shows(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("--help")
    out = capsys.readouterr().out
    assert "redis://127" not in out
    assert "predictive, random" in out
    with pytest.raises(ConfigError, match="openssl rand") as caught:
        RouterLike(cluster_secret="short").secret_bytes()
    assert "short:" not in str(caught.value)
