"""The torch engine's model runner: Llama, Mistral, Qwen2 and Qwen3 on CPU and CUDA.

A token's way through it: `runner` takes a Batch, `step_inputs` flattens it into tensors, `model` computes
hidden states (`attention` over the paged pool of `kv_cache`, `linear` and `rope` inside), `sampler` draws.
`model_config` and `weights` read a Hugging Face model directory.
"""

from tandem_engine.torch_engine.runner import TorchRunner

__all__ = ["TorchRunner"]
