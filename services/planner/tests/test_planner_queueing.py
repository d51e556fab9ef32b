from __future__ import annotations

import heapq
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_planner.queueing import SharedProcessor, WaitingLine, erlang_c

loads = st.floats(0.01, 0.99)
servers = st.integers(1, 40)


def erlang_c_by_definition(num_servers: int, load: float) -> float:
    last = load**num_servers / math.factorial(num_servers) * num_servers / (num_servers - load)
    return last / (sum(load**k / math.factorial(k) for k in range(num_servers)) + last)


@pytest.mark.parametrize(
    ("num_servers", "load", "expected"), [(1, 0.7, 0.7), (2, 1.0, 1 / 3), (5, 4.0, 0.5541), (10, 8.0, 0.4092)]
)
def test_erlang_c_gives_the_tabulated_values(num_servers: int, load: float, expected: float) -> None:
    assert erlang_c(num_servers, load) == pytest.approx(expected, abs=1e-4)


@given(num_servers=servers, utilisation=loads)
def test_erlang_c_equals_its_definition(num_servers: int, utilisation: float) -> None:
    load = utilisation * num_servers
    assert erlang_c(num_servers, load) == pytest.approx(erlang_c_by_definition(num_servers, load))


def test_erlang_c_holds_for_a_thousand_servers() -> None:
    assert 0.0 < erlang_c(1000, 950.0) < 0.5
    assert erlang_c(1000, 1000.0) == 1.0


def test_one_server_with_exponential_service_waits_as_the_textbook_says() -> None:
    line = WaitingLine(num_servers=1, rate_per_ms=0.008, service_ms=100.0)
    assert line.utilisation == pytest.approx(0.8)
    assert line.mean_wait_ms() == pytest.approx(0.8 / 0.2 * 100.0)


def test_one_server_with_constant_service_waits_half_as_long() -> None:
    line = WaitingLine(num_servers=1, rate_per_ms=0.008, service_ms=100.0, service_cv2=0.0)
    assert line.mean_wait_ms() == pytest.approx(0.5 * 0.8 / 0.2 * 100.0)


def test_a_line_that_grows_for_ever_has_no_bound() -> None:
    line = WaitingLine(num_servers=2, rate_per_ms=0.02, service_ms=100.0)
    assert line.mean_wait_ms() == math.inf
    assert line.sojourn_quantile_ms(0.5) == math.inf
    assert WaitingLine(num_servers=0, rate_per_ms=0.02, service_ms=1.0).sojourn_quantile_ms(0.5) == math.inf


def test_without_load_the_quantile_is_that_of_the_service() -> None:
    constant = WaitingLine(num_servers=1, rate_per_ms=1e-9, service_ms=100.0, service_cv2=0.0)
    assert constant.sojourn_quantile_ms(0.95) == pytest.approx(100.0, rel=0.01)
    varied = WaitingLine(num_servers=1, rate_per_ms=1e-9, service_ms=100.0, service_cv2=1.0)
    assert varied.sojourn_quantile_ms(0.95) == pytest.approx(278.0, rel=0.15)


@given(num_servers=servers, utilisation=loads, share=st.floats(0.5, 0.99), cv2=st.floats(0.0, 4.0))
def test_more_load_never_shortens_and_more_servers_never_lengthen_the_line(
    num_servers: int, utilisation: float, share: float, cv2: float
) -> None:
    def quantile(count: int, rate: float) -> float:
        line = WaitingLine(
            num_servers=count, rate_per_ms=rate, service_ms=10.0, arrival_cv2=2.0, service_cv2=cv2
        )
        return line.sojourn_quantile_ms(share)

    rate = utilisation * num_servers / 10.0
    here = quantile(num_servers, rate)
    assert quantile(num_servers, rate * 1.05) >= here * (1 - 1e-9)
    assert quantile(num_servers + 1, rate) <= here * (1 + 1e-9)


def test_the_waiting_line_agrees_with_a_simulation() -> None:
    draw, rate, count = random.Random(7), 0.024, 3
    sigma = math.sqrt(math.log(2.0))
    free_at = [0.0] * count
    now, sojourns = 0.0, []
    for _ in range(40_000):
        now += draw.expovariate(rate)
        service = 100.0 * draw.lognormvariate(-0.5 * sigma * sigma, sigma)
        start = max(now, heapq.heappop(free_at))
        heapq.heappush(free_at, start + service)
        sojourns.append(start + service - now)
    sojourns.sort()
    line = WaitingLine(num_servers=count, rate_per_ms=rate, service_ms=100.0)
    for share in (0.5, 0.9, 0.95, 0.99):
        assert line.sojourn_quantile_ms(share) == pytest.approx(
            sojourns[int(share * len(sojourns))], rel=0.15
        )


def test_the_shared_processor_agrees_with_a_simulation() -> None:
    draw, rate, steps = random.Random(7), 0.02, 30.0

    def step_ms(n: int) -> float:
        return 4.0 + 0.8 * n

    left: list[float] = []
    now, next_arrival, seen = 0.0, draw.expovariate(rate), []
    while len(seen) < 15_000:
        finish = now + min(left) * step_ms(len(left)) if left else math.inf
        until = min(finish, next_arrival)
        done = (until - now) / step_ms(len(left)) if left else 0.0
        left = [steps_left - done for steps_left in left]
        now = until
        if until == next_arrival:
            # Two kinds of outputs: the law must not depend on how lengths are distributed.
            left.append(draw.choice([0.2, 1.8]) * steps)
            seen.append(len(left))
            next_arrival = now + draw.expovariate(rate)
        else:
            left.remove(min(left))
    seen.sort()
    worker = SharedProcessor(rate_per_ms=rate, num_steps=steps, step_ms=step_ms, max_sequences=500)
    for share in (0.5, 0.9, 0.95):
        assert worker.step_quantile_ms(share) == pytest.approx(
            step_ms(seen[int(share * len(seen))]), rel=0.12
        )


def test_a_decode_worker_without_load_takes_the_step_of_one_sequence() -> None:
    worker = SharedProcessor(rate_per_ms=0.0, num_steps=100.0, step_ms=lambda n: 5.0 + n, max_sequences=8)
    assert worker.step_quantile_ms(0.99) == 6.0


def test_a_decode_worker_with_too_few_places_has_no_bound() -> None:
    def worker(max_sequences: int) -> SharedProcessor:
        return SharedProcessor(
            rate_per_ms=0.01, num_steps=100.0, step_ms=lambda n: 5.0 + 0.1 * n, max_sequences=max_sequences
        )

    assert worker(4).step_quantile_ms(0.95) == math.inf
    assert worker(8).step_quantile_ms(0.95) == math.inf
    assert worker(64).step_quantile_ms(0.95) < 8.0


@given(rate=st.floats(0.001, 0.2), places=st.integers(1, 64), share=st.floats(0.5, 0.99))
def test_decode_steps_do_not_get_shorter_with_more_requests(rate: float, places: int, share: float) -> None:
    def quantile(per_ms: float) -> float:
        return SharedProcessor(
            rate_per_ms=per_ms, num_steps=20.0, step_ms=lambda n: 2.0 + 0.3 * n, max_sequences=places
        ).step_quantile_ms(share)

    assert quantile(rate * 1.1) >= quantile(rate)


def test_thousands_of_sequences_do_not_overflow() -> None:
    worker = SharedProcessor(
        rate_per_ms=1.0, num_steps=100.0, step_ms=lambda n: 10.0 + 0.001 * n, max_sequences=2048
    )
    assert 10.9 < worker.step_quantile_ms(0.95) < 11.4
