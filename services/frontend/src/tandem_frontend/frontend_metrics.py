"""All metric families of the frontend, registered at start."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from tandem_frontend.histogram import StepHistogram

_PREFIX = "tandem_frontend_"
_TTFT_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 30.0, 60.0)
_ITL_BOUNDS = (0.001, 0.002, 0.004, 0.006, 0.01, 0.015, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_LAG_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class FrontendMetrics:
    """Counters and histograms; labels never hold anything that a client sent."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry
        self.requests = Counter(
            f"{_PREFIX}requests", "Requests by route and status.", ("route", "status"), registry=registry
        )
        self.ttft_s = Histogram(
            f"{_PREFIX}ttft_seconds",
            "From a request's arrival to its first token.",
            buckets=_TTFT_BOUNDS,
            registry=registry,
        )
        self.itl_s = StepHistogram(
            f"{_PREFIX}itl_seconds", "Gap between tokens of one request.", _ITL_BOUNDS, registry
        )
        self.prompt_tokens = Counter(f"{_PREFIX}prompt_tokens", "Prompt tokens accepted.", registry=registry)
        self.cached_tokens = Counter(
            f"{_PREFIX}cached_tokens", "Prompt tokens found in a worker's cache.", registry=registry
        )
        self.output_tokens = Counter(f"{_PREFIX}output_tokens", "Tokens sent to clients.", registry=registry)
        self.migrations = Counter(
            f"{_PREFIX}migrations", "Requests that went on on another worker.", registry=registry
        )
        self.slow_readers = Counter(
            f"{_PREFIX}slow_readers", "Streams ended because their client did not read.", registry=registry
        )
        self.open_requests = Gauge(
            f"{_PREFIX}open_requests", "Generations that have not ended.", registry=registry
        )
        self.sessions = Gauge(f"{_PREFIX}sessions", "Open sessions with decode workers.", registry=registry)
        self.registry_stale_s = Gauge(
            f"{_PREFIX}registry_stale_seconds", "Since Redis last answered.", registry=registry
        )
        self.ready = Gauge(f"{_PREFIX}ready", "1 when /health says 200.", registry=registry)
        self.canaries = Counter(
            f"{_PREFIX}canaries", "Canary requests by outcome.", ("outcome",), registry=registry
        )
        self.loop_lag_s = StepHistogram(
            f"{_PREFIX}event_loop_lag_seconds",
            "How late the event loop ran a timer.",
            _LAG_BOUNDS,
            registry,
        )
