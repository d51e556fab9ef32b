"""Which processes a stack consists of, and how each is started."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_cli.stack_options import StackOptions
from tandem_cli.stack_plan import Machine, StackPlan, Tier, plan_stack
from tandem_common.config import ConfigError, load_config
from tandem_frontend.config import FrontendConfig
from tandem_planner.config import PlannerConfig
from tandem_router.config import RouterConfig
from tandem_worker.config import WorkerConfig

SECRET = "0123456789abcdef"


def options(**fields: object) -> StackOptions:
    given_fields = {
        "model_dir": Path("/models/tiny"),
        "served_model_name": "tiny",
        "http_port": 8000,
        "grpc_port": 8001,
        "cluster_secret": SECRET,
        **fields,
    }
    return StackOptions(**given_fields)


def plan(num_cores: int = 8, environ: dict[str, str] | None = None, **fields: object) -> StackPlan:
    machine = Machine(
        num_cores=num_cores,
        environ={"PATH": "/bin"} if environ is None else environ,
        run_dir=Path("/run/tandem-up-x"),
        redis_program="/usr/bin/redis-server",
    )
    return plan_stack(options(**fields), machine)


def by_name(stack: StackPlan) -> dict[str, object]:
    return {spec.name: spec for spec in stack.services}


def flags(spec) -> dict[str, str]:
    assert len(spec.argv[3:]) % 2 == 0
    return dict(zip(spec.argv[3::2], spec.argv[4::2], strict=True))


def test_the_default_stack_has_two_workers_of_each_kind():
    assert set(by_name(plan())) == {
        "router", "planner", "prefill-1", "prefill-2", "decode-1", "decode-2", "frontend",
    }  # fmt: skip


@given(st.integers(0, 4), st.integers(1, 4), st.integers(0, 4), st.integers(1, 64))
def test_there_are_as_many_workers_as_asked_for_and_they_share_the_cores(
    prefill, decode, aggregated, num_cores
):
    stack = plan(num_cores, num_prefill=prefill, num_decode=decode, num_aggregated=aggregated)
    workers = [spec for spec in stack.services if spec.tier == Tier.WORKERS]
    roles = Counter(flags(spec)["--role"] for spec in workers)
    assert (roles["prefill"], roles["decode"], roles["both"]) == (prefill, decode, aggregated)
    threads = [int(flags(spec)["--threads"]) for spec in workers]
    assert min(threads) >= 1
    assert sum(threads) <= max(num_cores, len(workers))
    assert all(spec.environ["OMP_NUM_THREADS"] == flags(spec)["--threads"] for spec in workers)
    names = [spec.name for spec in stack.services]
    assert len(set(names)) == len(names)


def test_every_service_accepts_its_command_line():
    stack = plan(
        policy="round_robin", dtype="float32", block_size=8, kv_cache_mib=64, num_aggregated=1, threads=3,
        settings={"worker": {"max_sequences": "7"}, "frontend": {"max_migrations": "1"}},
    )  # fmt: skip
    kinds = {"router": RouterConfig, "planner": PlannerConfig, "frontend": FrontendConfig}
    for spec in stack.services:
        service = spec.name if spec.name in kinds else "worker"
        environ = {name: value for name, value in spec.environ.items() if name.startswith("TANDEM_")}
        config = load_config(kinds.get(service, WorkerConfig), service, spec.argv[3:], environ)
        assert config.cluster_secret == SECRET
        assert config.redis_url == "unix:///run/tandem-up-x/redis.sock"
        if service == "worker":
            assert (config.max_sequences, config.block_size, config.kv_cache_mib, config.threads) == (
                7,
                8,
                64,
                3,
            )
        if service == "frontend":
            assert (config.http_port, config.port, config.max_migrations) == (8000, 8001, 1)
        if service == "router":
            assert config.policy == "round_robin"


def test_what_was_not_asked_for_is_left_to_the_services():
    worker = by_name(plan())["decode-1"]
    assert {"--block-size", "--kv-cache-mib", "--dtype"}.isdisjoint(flags(worker))
    assert "--policy" not in flags(by_name(plan())["router"])


def test_prefill_and_decode_are_programs_of_their_own():
    specs = by_name(plan(num_aggregated=1))
    assert specs["prefill-1"].argv[2] == "tandem_prefill"
    assert specs["decode-1"].argv[2] == specs["aggregated-1"].argv[2] == "tandem_decode"


def test_secrets_travel_in_the_environment_only():
    stack = plan(redis_url="redis://:hunter2@redis.internal:6379/0")
    for spec in stack.services:
        assert spec.environ["TANDEM_CLUSTER_SECRET"] == SECRET
        assert not any(SECRET in part or "hunter2" in part for part in spec.argv)
        assert SECRET not in repr(spec)
    assert SECRET not in repr(options())
    assert "hunter2" not in repr(options(redis_url="redis://:hunter2@redis.internal"))


def test_the_users_environment_reaches_the_services_and_never_overrides_the_stacks():
    stack = plan(environ={"HOME": "/home/me", "TANDEM_REDIS_URL": "redis://elsewhere"})
    for spec in stack.services:
        assert spec.environ["HOME"] == "/home/me"
        assert spec.environ["TANDEM_REDIS_URL"] == stack.redis_url


def test_who_listens_on_all_addresses_is_reached_on_one_of_them():
    assert all(flags(spec)["--advertise-host"] == "127.0.0.1" for spec in plan(host="0.0.0.0").services)
    environ = {"TANDEM_ADVERTISE_HOST": "gpu7.internal"}
    assert not any("--advertise-host" in spec.argv for spec in plan(host="0.0.0.0", environ=environ).services)
    assert not any("--advertise-host" in spec.argv for spec in plan().services)


def test_a_given_redis_replaces_the_private_one_and_worker_names_become_unique():
    private, shared = plan(), plan(redis_url="redis://redis.internal:6379/0")
    assert private.redis is not None
    assert shared.redis is None
    assert flags(by_name(private)["decode-1"])["--worker-id"] == "decode-1"
    assert flags(by_name(shared)["decode-1"])["--worker-id"] == "tandem-up-x-decode-1"


def test_the_private_redis_listens_on_a_socket_only_and_writes_nothing():
    argv = plan().redis.argv
    assert argv[argv.index("--port") + 1] == "0"
    assert argv[argv.index("--save") + 1] == ""
    assert argv[argv.index("--appendonly") + 1] == "no"


def test_the_frontend_stops_first_and_redis_last():
    stack = plan()
    tiers = {spec.name: spec.tier for spec in (*stack.services, stack.redis)}
    order = sorted(tiers, key=lambda name: -tiers[name])
    assert order[0] == "frontend"
    assert set(order[1:5]) == {"prefill-1", "prefill-2", "decode-1", "decode-2"}
    assert order[5:] == ["router", "planner", "redis"]


def test_a_stop_in_order_fits_into_the_time_that_it_has():
    stack = plan()
    waits = {spec.tier: spec.stop_wait_s for spec in stack.services}
    assert sum(waits.values()) < 4.0


def test_a_socket_path_that_is_too_long_is_refused_with_the_fix():
    machine = Machine(num_cores=1, environ={}, run_dir=Path("/" + "x" * 120), redis_program="redis-server")
    with pytest.raises(ConfigError, match="TMPDIR"):
        plan_stack(options(), machine)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_decode": 0}, "--decode"),
        ({"num_prefill": -1}, "--prefill"),
        ({"threads": 0}, "--threads"),
        ({"cluster_secret": "short"}, "TANDEM_CLUSTER_SECRET"),
    ],
)
def test_what_cannot_work_is_refused_with_its_flag(fields, named):
    with pytest.raises(ConfigError, match=named):
        options(**fields)


def test_aggregated_workers_alone_are_enough():
    assert options(num_prefill=0, num_decode=0, num_aggregated=1).num_workers == 1


def test_the_plan_changes_nothing():
    before = dict(os.environ)
    assert plan() == plan()
    assert dict(os.environ) == before
