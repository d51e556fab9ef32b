"""How long a client waits for what."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Seconds; each must be positive and finite. What runs out raises DeadlineExceeded, except `connect_s`.

    `connect_s`: to open the connection (Unavailable). `first_token_s`: from the call to the first piece of the
    answer, retries included. `between_tokens_s`: from one piece to the next. `total_s`: the whole call; it is
    also the deadline that the server sees.
    """

    connect_s: float = 5.0
    first_token_s: float = 120.0
    between_tokens_s: float = 60.0
    total_s: float = 3600.0

    def __post_init__(self) -> None:
        """Check every value."""
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"Timeouts.{name} must be a positive number of seconds, got {value!r}")
