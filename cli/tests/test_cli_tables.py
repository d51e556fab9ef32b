"""What `top` and `explain` show, and the query of a dry run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from tandem.v1 import cluster_pb2, router_pb2
from tandem_cli.cluster_table import cluster_table
from tandem_cli.explanation import dry_run_query, explanation
from tandem_common.hashing import block_hashes, namespace_root, pack_hashes, tenant_salt


def shown(renderable: object) -> str:
    output = io.StringIO()
    Console(file=output, width=80).print(renderable)
    return output.getvalue()


def view(worker_id: str, role: cluster_pb2.Role, **beat: object) -> router_pb2.WorkerView:
    card = cluster_pb2.WorkerCard(worker_id=worker_id, role=role, num_blocks=200)
    return router_pb2.WorkerView(
        card=card, beat=cluster_pb2.WorkerBeat(**beat), num_bookings=3, index_ready=True
    )


def test_top_shows_a_row_per_worker_that_fits_a_terminal():
    busy = view(
        "decode-1", cluster_pb2.ROLE_DECODE,
        num_running=5, num_waiting=2, queued_prefill_tokens=700, num_used_blocks=50, num_cached_blocks=20,
        prefill_speed=cluster_pb2.PrefillSpeed(b_ms=0.5), num_decoding=3, decode_kv_tokens=1000,
        decode_speed=cluster_pb2.DecodeSpeed(a_ms=2, b_ms=1, c_ms=0.004),
    )  # fmt: skip
    idle = view("prefill-1", cluster_pb2.ROLE_PREFILL)
    text = shown(cluster_table(router_pb2.WatchClusterResponse(workers=[busy, idle])))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    assert rows["decode-1"] == ["decode", "serving", "5", "2", "700", "3", "25%", "10%", "2,000", "10.0"]
    assert rows["prefill-1"] == ["prefill", "serving", "0", "0", "0", "3", "0%", "0%", "-", "-"]


def test_top_says_when_its_view_is_old():
    assert "5.0 s ago" in shown(cluster_table(router_pb2.WatchClusterResponse(stale_ms=5000)))
    assert "ago" not in shown(cluster_table(router_pb2.WatchClusterResponse(stale_ms=300)))


def test_a_draining_or_loading_worker_is_marked():
    draining = view("a", cluster_pb2.ROLE_BOTH)
    draining.card.status = cluster_pb2.WORKER_STATUS_DRAINING
    loading = view("b", cluster_pb2.ROLE_BOTH)
    loading.index_ready = False
    text = shown(cluster_table(router_pb2.WatchClusterResponse(workers=[draining, loading])))
    assert "draining" in text
    assert "loading" in text


@pytest.mark.parametrize(
    ("admission", "words"),
    [
        (
            {"verdict": "start", "ttft_bound_ms": 120.0, "deadline_ms": 500.0},
            ("would start now", "120 ms", "deadline 500"),
        ),
        ({"verdict": "wait", "wait_ms": 800.0, "num_waiting": 3}, ("would wait 800 ms", "beside 3 others")),
        ({"verdict": "refuse", "reason": "too late"}, ("would be refused: too late",)),
    ],
)
def test_explain_says_what_the_queue_would_make_of_a_dry_run(admission, words):
    view = router_pb2.AdmissionView(error_factor=1.5, **admission)
    chosen = router_pb2.RouteResponse(decode=router_pb2.WorkerRef(worker_id="d"), predicted_ttft_ms=80)
    text = " ".join(shown(explanation(router_pb2.ExplainResponse(chosen=chosen, admission=view))).split())
    for word in (*words, "1.50 times"):
        assert word in text
    assert "would" not in shown(explanation(router_pb2.ExplainResponse(chosen=chosen)))


def test_explain_tells_no_time_while_no_speeds_are_known():
    chosen = router_pb2.RouteResponse(decode=router_pb2.WorkerRef(worker_id="d"))
    view = router_pb2.AdmissionView(verdict="start", error_factor=1.0, deadline_ms=60_000)
    text = " ".join(shown(explanation(router_pb2.ExplainResponse(chosen=chosen, admission=view))).split())
    assert "It would start now; no time is predicted (deadline 60000 ms)" in text
    assert "0 ms;" not in text
    assert "times" not in text


def test_explain_shows_candidates_terms_and_who_was_left_out():
    candidates = [
        router_pb2.Candidate(decode_worker_id="decode-1", terms={"queue": 1.5, "ship": 0.0}, cost=1.5),
        router_pb2.Candidate(
            decode_worker_id="decode-1", prefill_worker_id="prefill-1", prefill_cached_blocks=4,
            terms={"queue": 2.0, "ship": 0.0}, cost=2.0,
        ),
    ]  # fmt: skip
    response = router_pb2.ExplainResponse(
        policy="predictive", unit="ms", candidates=candidates, num_candidates=7,
        chosen=router_pb2.RouteResponse(decode=router_pb2.WorkerRef(worker_id="decode-1"), predicted_ttft_ms=12.5),
        excluded={"decode-2": "draining"},
    )  # fmt: skip
    text = shown(explanation(response))
    assert "Chosen: decode-1, prompt on the same worker" in text
    assert "12.5 ms" in text
    assert "queue" in text
    assert "ship" not in text
    assert "prefill-1" in text
    assert "4 + 0" in text
    assert "and 5 dearer ones" in text
    assert "draining" in text


def test_a_dry_run_names_the_blocks_that_a_frontend_would():
    card = cluster_pb2.WorkerCard(model="tiny", model_revision="rev", block_size=4)
    query = dry_run_query(card, range(10), secret="0123456789abcdef", tenant="public", max_tokens=5)
    root = namespace_root("rev", tenant_salt=tenant_salt(b"0123456789abcdef", "public"))
    assert query.block_hashes == pack_hashes(block_hashes(root, range(10), 4))
    assert (query.model, query.num_tokens, query.max_tokens) == ("tiny", 10, 5)


def test_a_dry_run_without_the_secret_names_no_blocks():
    card = cluster_pb2.WorkerCard(model="tiny", model_revision="rev", block_size=4)
    assert dry_run_query(card, range(10), secret="", tenant="public", max_tokens=5).block_hashes == b""
