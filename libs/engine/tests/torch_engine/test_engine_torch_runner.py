"""What a runner says about itself after loading, and what it refuses to load with."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from tandem_engine.api import ModelError


def error_of(load, path, **settings):
    with pytest.raises(ModelError) as error:
        load(path, **settings)
    return str(error.value)


def test_the_pool_and_the_context_follow_the_settings(tiny_model, load):
    path = tiny_model("llama").path
    block_bytes = 3 * 2 * 8 * 2 * 16 * 4
    info = load(path, num_blocks=0, kv_cache_mib=1).info
    assert info.block_bytes == block_bytes
    assert info.num_blocks == (1 << 20) // block_bytes
    assert load(path, max_context_tokens=100).info.max_context_tokens == 100
    assert load(path, num_blocks=3).info.max_context_tokens == 24
    assert "at most 256" in error_of(load, path, max_context_tokens=257)
    assert "kv_cache_mib" in error_of(load, path, num_blocks=0, kv_cache_mib=1, block_size=4096)


def test_blocks_fit_engines_with_the_same_weights_and_layout_only(tiny_model, tmp_path, load):
    path = tiny_model("llama").path
    other = tmp_path / "other"
    shutil.copytree(path, other)
    digest = load(path).info.layout_digest
    assert load(path, num_blocks=50).info.layout_digest == digest
    assert load(path, dtype="bfloat16").info.layout_digest != digest
    assert load(path, block_size=4).info.layout_digest != digest
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert load(other).info.layout_digest != digest


def test_cuda_without_a_gpu_is_a_model_error(tiny_model, load):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert "no CUDA device" in error_of(load, tiny_model("llama").path, device="cuda")


def test_threads_that_wait_sleep_rather_than_spin():
    # OpenMP tells what it read at start-up; a setting made after torch was loaded would come too late.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    program = "import tandem_engine.torch_engine"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environ | {"OMP_DISPLAY_ENV": "true"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    if "OMP_WAIT_POLICY" not in done.stderr:
        pytest.skip("this torch does not use OpenMP")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
