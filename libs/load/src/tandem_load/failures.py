"""How requests fail, and how many of them did."""

from __future__ import annotations

import msgspec


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """One request that was not answered in full. `kind` groups: HTTP 429, stream broken off, timed out, ..."""

    kind: str
    message: str
    retry_after_s: float | None = None


class FailureCount(msgspec.Struct, kw_only=True):
    """Failures of one kind; the message is that of the first."""

    count: int = 0
    message: str = ""
    least_retry_after_s: float | None = None
    most_retry_after_s: float | None = None

    def add(self, failure: Failure) -> None:
        """Count one."""
        self.count += 1
        self.message = self.message or failure.message
        after_s = failure.retry_after_s
        if after_s is not None:
            least, most = self.least_retry_after_s, self.most_retry_after_s
            self.least_retry_after_s = after_s if least is None else min(least, after_s)
            self.most_retry_after_s = after_s if most is None else max(most, after_s)
