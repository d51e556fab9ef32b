"""The router's Prometheus metrics; all families exist from the start, at zero."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

REFUSAL_REASONS = ("INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNAVAILABLE")
_CHOOSE_BUCKETS_S = (5e-5, 1e-4, 1.5e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2)
_RATIO_BUCKETS = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
_TTFT_BUCKETS_MS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000)


class RouterMetrics:
    """One set of metrics; tests give each its own registry."""

    def __init__(self, policy: str, registry: CollectorRegistry = REGISTRY) -> None:
        """`policy` is the one whose decisions are counted."""
        self.decisions = Counter(
            "tandem_router_decisions",
            "Routing decisions, by policy and by where the prompt is computed.",
            ("policy", "prefill"),
            registry=registry,
        )
        for prefill in ("local", "remote"):
            self.decisions.labels(policy, prefill)
        self.refusals = Counter(
            "tandem_router_refusals",
            "Route calls that ended with an error, by status.",
            ("code",),
            registry=registry,
        )
        for code in REFUSAL_REASONS:
            self.refusals.labels(code)
        self.choose_s = Histogram(
            "tandem_router_choose_seconds",
            "Time to match the hashes and to choose the workers.",
            buckets=_CHOOSE_BUCKETS_S,
            registry=registry,
        )
        self.predicted_ttft_ms = Histogram(
            "tandem_router_predicted_ttft_ms",
            "Predicted time to first token, milliseconds; only while speeds are known.",
            buckets=_TTFT_BUCKETS_MS,
            registry=registry,
        )
        self.cached_tokens = Counter(
            "tandem_router_predicted_cached_tokens",
            "Prompt tokens that were expected in the cache of the worker that computes the prompt.",
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "tandem_router_prompt_tokens", "Prompt tokens of all routed requests.", registry=registry
        )
        self.waited_ms = Histogram(
            "tandem_router_waited_ms",
            "Time that a routed request waited in the router, milliseconds.",
            buckets=_TTFT_BUCKETS_MS,
            registry=registry,
        )
        self.waiting = Gauge("tandem_router_waiting", "Requests that wait in the router.", registry=registry)
        self.prediction_ratio = Histogram(
            "tandem_router_prediction_ratio",
            "Observed over predicted time to first token, as frontends report it.",
            buckets=_RATIO_BUCKETS,
            registry=registry,
        )
        self.error_factor = Gauge(
            "tandem_router_prediction_error_factor",
            "Observed over predicted time to first token, at the quantile that admission uses.",
            registry=registry,
        )
        self.workers = Gauge("tandem_router_workers", "Workers in the view.", registry=registry)
        self.bookings = Gauge(
            "tandem_router_bookings", "Requests that their workers have not reported yet.", registry=registry
        )
        self.index_blocks = Gauge(
            "tandem_router_index_blocks", "Different block hashes in the index.", registry=registry
        )
        self.catching_up = Gauge(
            "tandem_router_workers_catching_up",
            "Workers whose blocks are not known yet: routed to by load alone.",
            registry=registry,
        )
        self.view_stale_ms = Gauge(
            "tandem_router_view_stale_ms", "Milliseconds since Redis last answered.", registry=registry
        )
        self.applied_events = Counter(
            "tandem_router_kv_events_applied", "KV event records applied to the index.", registry=registry
        )
        self.skipped_records = Counter(
            "tandem_router_kv_records_skipped",
            "KV records left out, by reason.",
            ("reason",),
            registry=registry,
        )
        for reason in ("malformed", "stale_epoch"):
            self.skipped_records.labels(reason)
        self.snapshot_loads = Counter(
            "tandem_router_kv_snapshot_loads",
            "Times that a worker's blocks were loaded anew, from its snapshot or the start of its stream.",
            registry=registry,
        )
