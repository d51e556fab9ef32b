"""GPUs by their public figures, and what part of those an engine is assumed to reach.

Every figure is that of the vendor's data sheet for one GPU, dense (the data sheets' headline numbers are with 2:4
sparsity, twice as high):

    H100   SXM5 80 GB   NVIDIA H100 Tensor Core GPU data sheet: BF16 1,979 TFLOPS sparse, 3.35 TB/s, 80 GB
    H200   SXM 141 GB   NVIDIA H200 Tensor Core GPU data sheet: BF16 1,979 TFLOPS sparse, 4.8 TB/s, 141 GB
    B200   SXM 180 GB   NVIDIA DGX B200 data sheet, an eighth of the system: BF16 36 PFLOPS sparse, 64 TB/s, 1,440 GB
    L40S   PCIe 48 GB   NVIDIA L40S data sheet: BF16 733 TFLOPS sparse, 864 GB/s, 48 GB

The link within a worker (tensor parallelism) is NVLink 4 at 900 GB/s and NVLink 5 at 1,800 GB/s in both directions
together, so half of it in one; PCIe 4.0 x16 at 64 GB/s both ways for the L40S (same data sheets).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuProfile:
    """One GPU. FLOP/s are dense bf16; rates are per second and per GPU."""

    name: str
    flops: float
    memory_bytes_per_s: float
    memory_bytes: float
    peer_bytes_per_s: float  # to the other GPUs of a worker, one direction


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """ASSUMPTIONS, not data sheet figures: what an engine reaches of the peaks, and what each step costs besides.

    They are the same for all GPUs and models, and rounded from what open engines commonly report (matrix
    multiplication of long prompts at 50 to 60 % of the peak, decode at 70 to 80 % of the bandwidth). Results move in
    proportion to them, comparisons between policies and layouts hardly do.
    """

    compute: float = 0.55  # of peak FLOP/s in matrix multiplications
    attention: float = 0.40  # of peak FLOP/s in attention over prompts
    bandwidth: float = 0.75  # of peak memory bandwidth
    peer: float = 0.70  # of the link within a worker
    step_s: float = 1.5e-3  # scheduling, launching, sampling
    collective_s: float = 8e-6  # latency of one all-reduce; two per layer
    memory: float = 0.90  # of the memory that weights and KV may fill
    # Of the shorter of computing products and reading their weights, the part that the longer one hides. 1: a roofline.
    overlap: float = 1.0


# Fits the times of `layer_times`, the work on activations included, within 11 % (root mean square over its sizes),
# where `Efficiency()` is within 20 % and the best that hides everything (compute 0.52, bandwidth 0.64) within 18 %.
FITTED = Efficiency(compute=0.64, bandwidth=0.75, overlap=0.45)


GPUS = {
    gpu.name: gpu
    for gpu in (
        GpuProfile(
            name="H100",
            flops=989.5e12,
            memory_bytes_per_s=3.35e12,
            memory_bytes=80e9,
            peer_bytes_per_s=450e9,
        ),
        GpuProfile(
            name="H200",
            flops=989.5e12,
            memory_bytes_per_s=4.8e12,
            memory_bytes=141e9,
            peer_bytes_per_s=450e9,
        ),
        GpuProfile(
            name="B200",
            flops=2250e12,
            memory_bytes_per_s=8.0e12,
            memory_bytes=180e9,
            peer_bytes_per_s=900e9,
        ),
        GpuProfile(
            name="L40S",
            flops=366.5e12,
            memory_bytes_per_s=864e9,
            memory_bytes=48e9,
            peer_bytes_per_s=32e9,
        ),
    )
}
