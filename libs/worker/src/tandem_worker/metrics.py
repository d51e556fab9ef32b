"""Prometheus families of a worker; all of them are there from the start."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

TOKENS = Counter("tandem_worker_tokens_total", "Tokens written for requests")
COMPUTED_PROMPT_TOKENS = Counter("tandem_worker_prompt_tokens_total", "Prompt tokens computed")
STEPS = Counter("tandem_worker_steps_total", "Engine steps that computed something")
STEP_SECONDS = Histogram(
    "tandem_worker_step_seconds",
    "Duration of an engine step",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
REQUESTS = Counter("tandem_worker_requests_total", "Requests ended here", ["outcome"])
ACTIVE = Gauge("tandem_worker_active_requests", "Requests that are here now")
SESSIONS = Gauge("tandem_worker_sessions", "Sessions open with frontends")
SESSION_OVERFLOWS = Counter(
    "tandem_worker_session_overflows_total", "Sessions ended because their frontend did not read"
)
USED_BLOCKS = Gauge("tandem_worker_used_blocks", "Blocks held by requests")
CACHED_BLOCKS = Gauge("tandem_worker_cached_blocks", "Blocks held by the prefix cache only")
LEASES = Gauge("tandem_worker_leases", "Handoff leases held now")
RECEIVED_CHUNKS = Counter("tandem_worker_received_chunks_total", "Chunks of blocks taken in", ["outcome"])
RECEIVED_BYTES = Counter("tandem_worker_received_bytes_total", "Bytes of blocks written into the pool")
SHIPPED_BYTES = Counter("tandem_worker_shipped_bytes_total", "Bytes of blocks shipped", ["transport"])
REMOTE_PREFILLS = Counter(
    "tandem_worker_remote_prefills_total", "Prompts that another worker was asked to compute", ["outcome"]
)
KV_ENTRIES = Counter("tandem_worker_kv_entries_total", "Entries written to the stream of KV events")
REDIS_OUTAGES = Counter("tandem_worker_redis_outages_total", "Times that Redis stopped answering")

for _outcome in ("finished", "cancelled", "failed"):
    REQUESTS.labels(_outcome)
for _outcome in ("copied", "duplicate", "discarded"):
    RECEIVED_CHUNKS.labels(_outcome)
for _outcome in ("done", "fell_back"):
    REMOTE_PREFILLS.labels(_outcome)
for _transport in ("shm", "tcp"):
    SHIPPED_BYTES.labels(_transport)
