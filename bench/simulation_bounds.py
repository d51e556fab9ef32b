"""The most that workers could serve of the mixed prompts of `bench/simulation.py`, by each step model.

    .venv/bin/python bench/simulation_bounds.py [--tpot-ms 40]

No queues, no waiting, perfect balance (`tandem_sim.bound`). *Any*: no scheduler whatever serves more. *All decode*: nor
does any whose workers all decode all the time within the target, in steps of whatever sizes: aggregated workers.
"""

from __future__ import annotations

import argparse

from tandem_sim.bound import Demand, highest_decoding_rate, highest_rate
from tandem_sim.scenario import WorkerGroup
from tandem_sim.step_time import STEP_MODELS, gpu_step_time
from tandem_sim.synthetic import MIXED, poisson

GPU, MODEL = "H100", "llama-3-70b"


def main() -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tpot-ms", type=float, default=40.0)
    tpot_s = parser.parse_args().tpot_ms / 1e3
    requests = poisson(MIXED, rate=1.0, num_requests=20_000, seed=1)
    sequences_at_once = WorkerGroup(role="decode", count=1).max_sequences
    print(f"requests per second and worker of 4 {GPU}, {1e3 * tpot_s:g} ms between tokens")
    for name in STEP_MODELS:
        steps = gpu_step_time(name, GPU, MODEL)
        demand = Demand.of(requests, steps)
        most = highest_rate(demand, steps, 1, sequences_at_once)
        all_decode = highest_decoding_rate(demand, steps, 1, 1, tpot_s)
        one_decodes = highest_decoding_rate(demand, steps, 2, 1, tpot_s) / 2
        print(
            f"{name:9} any {most:5.2f}, one of two decodes {min(most, one_decodes):5.2f}, "
            f"all decode {all_decode:5.2f}: {most / all_decode:.2f} times"
        )


if __name__ == "__main__":
    main()
