"""`python -m tandem_decode`: a worker that starts in the decode role."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_common.config import setting
from tandem_common.service import run_service
from tandem_worker.config import ROLES, WorkerConfig
from tandem_worker.host import serve_worker


@dataclass(frozen=True, kw_only=True)
class DecodeConfig(WorkerConfig):
    """A decode worker of Tandem."""

    role: str = setting("decode", "what the worker does at first", choices=ROLES)


def main() -> None:
    """Run until told to stop."""
    run_service(DecodeConfig, "worker", serve_worker)


if __name__ == "__main__":
    main()
