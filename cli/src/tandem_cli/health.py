"""Asking a frontend whether a request would be answered."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

_TIMEOUT_S = 2.0


def health_problem(http_address: str, *, num_prefill: int, num_decode: int) -> str | None:
    """Why the frontend is not ready with a router and so many workers of each kind at least; None when it is."""
    # A proxy meant for the outside would lead away from this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{http_address}/health", timeout=_TIMEOUT_S) as response:
            report = json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return _reason(error.read()) or f"/health answers {error.code}"
    except (OSError, ValueError) as error:
        return f"/health does not answer ({error})"
    for kind, needed in (("prefill", num_prefill), ("decode", num_decode)):
        seen = report.get(f"num_{kind}_workers", needed)
        if seen < needed:
            return f"it sees {seen} of {needed} {kind} workers"
    if report.get("num_routers", 1) == 0:
        return "it sees no router"
    return None


def _reason(body: bytes) -> str | None:
    try:
        report = json.loads(body)
    except ValueError:
        return None
    reason = report.get("reason") if isinstance(report, dict) else None
    return reason if isinstance(reason, str) else None
