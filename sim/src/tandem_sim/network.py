"""How blocks get from worker to worker: tiers of links, and handoffs that share them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkTier:
    """A kind of link between two workers; the rate is what one worker can send, and receive, in all."""

    name: str
    bytes_per_s: float
    latency_s: float


# Peaks are the interfaces' own; 80 % of them is ASSUMED to be reached, as are the latencies.
TIERS = {
    tier.name: tier
    for tier in (
        # NVLink 4: 900 GB/s in both directions together.
        NetworkTier(name="nvlink", bytes_per_s=0.8 * 450e9, latency_s=50e-6),
        # Shared memory or PCIe 5.0 x16 within a host: 64 GB/s.
        NetworkTier(name="pcie", bytes_per_s=0.8 * 64e9, latency_s=100e-6),
        # NDR InfiniBand: 400 Gb/s, one adapter per worker.
        NetworkTier(name="rdma", bytes_per_s=0.8 * 50e9, latency_s=100e-6),
        # 100 Gb/s Ethernet with TCP.
        NetworkTier(name="ethernet-100g", bytes_per_s=0.8 * 12.5e9, latency_s=300e-6),
        NetworkTier(name="ethernet-10g", bytes_per_s=0.8 * 1.25e9, latency_s=500e-6),
    )
}


class Links:
    """Every worker's way in and way out: one transfer at a time on each, in order."""

    def __init__(self) -> None:
        self._free_at: dict[tuple[str, bool], float] = {}

    def send(self, source: str, destination: str, num_bytes: float, tier: NetworkTier, now_s: float) -> float:
        """Take both ends for a transfer that is ready now; returns when its last byte has arrived."""
        out, into = (source, True), (destination, False)
        start_s = max(now_s, self._free_at.get(out, 0.0), self._free_at.get(into, 0.0))
        end_s = start_s + num_bytes / tier.bytes_per_s
        self._free_at[out] = self._free_at[into] = end_s
        return end_s + tier.latency_s
