"""The torch engine's model runner: the model families of `families`, on CPU and CUDA.

A token's way through it: `runner` takes a Batch, `step_inputs` flattens it into tensors, `model` computes
logits (`attention` over the paged pool of `kv_cache`, `linear` and `rope` inside), `logit_edits` and `sampler`
turn them into tokens. On a CPU with a C compiler steps take a shorter way: `short_step` has C do all of it, out of
the same memory; processors with tile units (AMX) go that way with few tokens only. `model_config`, `rope_config` and
`weights` read a Hugging Face model directory.
"""

import os

# Threads that wait for one another must sleep, not spin: where several workers share the cores, a spinning thread
# holds up the one it waits for, and steps take ten times as long. OpenMP reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from tandem_engine.torch_engine.runner import TorchRunner

__all__ = ["TorchRunner"]
