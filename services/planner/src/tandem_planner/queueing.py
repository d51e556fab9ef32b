"""Waiting lines: what a number of workers means for the latency that a share of the requests sees.

Prefill is a line in front of several servers (M/G/c): prompts are computed one after another, and the router sends
each to the worker that is free first. Decode is processor sharing: all sequences of a worker advance together, each
step the slower the more there are.

Sources: A. O. Allen, "Probability, Statistics, and Queueing Theory" (1990), chapter 5: Erlang's C formula and the
Allen-Cunneen approximation with an exponential tail. F. P. Kelly, "Reversibility and Stochastic Networks" (1979),
chapter 3: the stationary law of symmetric queues, which does not depend on the distribution of service times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

# Equally likely service times that stand for the distribution.
_NUM_SERVICE_POINTS = 40
_NUM_BISECTIONS = 60


def erlang_c(num_servers: int, offered_load: float) -> float:
    """Probability that an arrival waits in M/M/c; `offered_load` = arrival rate · mean service time.

    1 when the load is not below the number of servers. By the stable recurrence of Erlang's B formula.
    """
    if offered_load >= num_servers:
        return 1.0
    blocking = 1.0
    for servers in range(1, num_servers + 1):
        blocking = offered_load * blocking / (servers + offered_load * blocking)
    return num_servers * blocking / (num_servers - offered_load * (1.0 - blocking))


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitingLine:
    """M/G/c with first come, first served. Times in milliseconds.

    `arrival_cv2` and `service_cv2` are squared coefficients of variation of the times between arrivals and of the
    service times; 1 and 1 make it the exact M/M/c.
    """

    num_servers: int
    rate_per_ms: float
    service_ms: float
    arrival_cv2: float = 1.0
    service_cv2: float = 1.0

    @property
    def utilisation(self) -> float:
        """Share of time that a server is busy; 1 and more: the line grows for ever."""
        return self.rate_per_ms * self.service_ms / self.num_servers if self.num_servers else math.inf

    def probability_of_wait(self) -> float:
        """Probability that an arrival finds all servers busy."""
        return erlang_c(self.num_servers, self.rate_per_ms * self.service_ms)

    def mean_wait_ms(self) -> float:
        """Mean time before service begins (Allen-Cunneen); infinite when the line grows for ever."""
        if self.utilisation >= 1.0:
            return math.inf
        return self.probability_of_wait() * self._mean_wait_of_those_who_wait_ms()

    def sojourn_quantile_ms(self, share: float) -> float:
        """Wait and service together that `share` of the requests stay within.

        The wait of those who wait is taken as exponential, service times as log-normal with the given variation.
        """
        if self.utilisation >= 1.0:
            return math.inf
        waits = self.probability_of_wait()
        decay_ms = self._mean_wait_of_those_who_wait_ms()
        services = [self.service_ms * factor for factor in _service_factors(self.service_cv2)]

        def share_beyond(time_ms: float) -> float:
            beyond = sum(
                1.0 if service > time_ms else waits * math.exp((service - time_ms) / decay_ms)
                for service in services
            )
            return beyond / len(services)

        high = services[-1] + decay_ms
        while share_beyond(high) > 1.0 - share:
            high *= 2.0
        low = 0.0
        for _ in range(_NUM_BISECTIONS):
            middle = 0.5 * (low + high)
            if share_beyond(middle) > 1.0 - share:
                low = middle
            else:
                high = middle
        return high

    def _mean_wait_of_those_who_wait_ms(self) -> float:
        idle = self.num_servers * (1.0 - self.utilisation)
        mean_ms = self.service_ms / idle * (self.arrival_cv2 + self.service_cv2) / 2.0
        # Perfectly regular arrivals and services never wait; the tail still needs a length.
        return max(mean_ms, 1e-9 * self.service_ms)


@lru_cache(maxsize=64)
def _service_factors(cv2: float) -> tuple[float, ...]:
    """Quantiles of the log-normal distribution of mean 1 at the middles of equal shares, ascending."""
    sigma = math.sqrt(math.log1p(cv2))
    normal = NormalDist()
    return tuple(
        math.exp(sigma * normal.inv_cdf((i + 0.5) / _NUM_SERVICE_POINTS) - 0.5 * sigma * sigma)
        for i in range(_NUM_SERVICE_POINTS)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedProcessor:
    """One decode worker: Poisson arrivals, every sequence needs `num_steps` steps on average.

    `step_ms` gives the step time with so many sequences and must not fall. At most `max_sequences` run; the others
    wait in line.
    """

    rate_per_ms: float
    num_steps: float
    step_ms: Callable[[int], float]
    max_sequences: int

    def step_quantile_ms(self, share: float) -> float:
        """Step time that `share` of the arriving requests stay within, themselves included.

        Infinite when a larger share than the rest has to wait for a place.
        """
        work = self.rate_per_ms * self.num_steps
        drain = work * self.step_ms(self.max_sequences) / self.max_sequences
        if drain >= 1.0:
            return math.inf
        # Birth and death: n sequences leave at n / (num_steps · step time).
        weights = [1.0]
        scale = 1.0
        for n in range(1, self.max_sequences):
            scale *= work * self.step_ms(n) / n
            weights.append(scale)
            if scale > 1e200:
                weights = [weight / scale for weight in weights]
                scale = 1.0
        # Beyond the limit the worker gets no slower: a geometric tail.
        waiting = scale * drain / (1.0 - drain)
        needed = share * (sum(weights) + waiting)
        reached = 0.0
        for n, weight in enumerate(weights):
            reached += weight
            if reached >= needed:
                return self.step_ms(n + 1)
        return math.inf
