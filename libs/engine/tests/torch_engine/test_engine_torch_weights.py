"""Weights are read from one file or shards alike, and what is wrong with them is said with the fix."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tandem_engine.api import ModelError
from tandem_engine.torch_engine.families import FAMILIES
from tandem_engine.torch_engine.memory import available_bytes, check_memory
from tandem_engine.torch_engine.weights import INDEX_FILE, SINGLE_FILE, Weights


@pytest.fixture
def broken(tiny_model, tmp_path):
    """A copy of a model directory, to be damaged."""
    path = tmp_path / "model"
    shutil.copytree(tiny_model("llama").path, path)
    return path


@pytest.fixture
def sharded(tiny_model, tmp_path):
    path = tmp_path / "sharded"
    tiny_model("llama").reference.save_pretrained(path, max_shard_size="200KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


def rewrite(path, change):
    tensors = load_file(path / SINGLE_FILE)
    change(tensors)
    save_file(tensors, path / SINGLE_FILE)


def error_of(load, path, **settings):
    with pytest.raises(ModelError) as error:
        load(path, **settings)
    return str(error.value)


def test_shards_give_the_same_tokens_as_one_file(tiny_model, sharded, load, random_prompt):
    prompt = random_prompt(30)
    one, many = load(tiny_model("llama").path), load(sharded)
    assert one.generate(one.track(prompt), 15) == many.generate(many.track(prompt), 15)


def test_a_missing_shard_is_named(sharded, load):
    missing = sorted(sharded.glob("*.safetensors"))[1]
    missing.unlink()
    message = error_of(load, sharded)
    assert missing.name in message
    assert "missing" in message


def test_a_shard_without_a_tensor_that_the_index_promises_is_named(sharded, load):
    shard = sorted(sharded.glob("*.safetensors"))[0]
    tensors = load_file(shard)
    name = min(tensors)
    del tensors[name]
    save_file(tensors, shard)
    message = error_of(load, sharded)
    assert name in message
    assert shard.name in message


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"weight_map": {"a": "../a.safetensors"}}', '{"weight_map": 3}']
)
def test_a_damaged_index_is_an_error(sharded, load, content):
    (sharded / INDEX_FILE).write_text(content)
    assert "damaged" in error_of(load, sharded)


def test_a_truncated_file_is_named(broken, load):
    file = broken / SINGLE_FILE
    for size in (file.stat().st_size - 100, 50, 3, 0):
        with file.open("r+b") as opened:
            opened.truncate(size)
        message = error_of(load, broken)
        assert SINGLE_FILE in message
        assert "download it again" in message


def test_a_pointer_of_git_lfs_is_called_by_its_name(broken, load):
    (broken / SINGLE_FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n")
    message = error_of(load, broken)
    assert SINGLE_FILE in message
    assert "git lfs pull" in message


@pytest.mark.parametrize("architecture", ["DeepseekV3ForCausalLM", "Gemma3ForConditionalGeneration"])
def test_an_unknown_architecture_is_told_what_is_known_and_what_else_there_is(broken, load, architecture):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
    message = error_of(load, broken)
    assert architecture in message
    assert all(known in message for known in FAMILIES)
    assert "sglang and vllm engines" in message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.gguf"])
def test_other_formats_than_safetensors_are_refused_by_name(broken, load, name):
    (broken / SINGLE_FILE).rename(broken / name)
    message = error_of(load, broken)
    assert f"but {name}, which is not read" in message
    assert "only safetensors" in message


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("has_safetensors", [True, False])
def test_nothing_that_comes_with_a_model_is_executed(has_safetensors, broken, load, tmp_path):
    trace = tmp_path / "executed"
    (broken / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(trace)))
    (broken / "modeling_llama.py").write_text(f"open({str(trace)!r}, 'w')")
    config = json.loads((broken / "config.json").read_text())
    auto_map = {"AutoConfig": "modeling_llama.Config", "AutoModelForCausalLM": "modeling_llama.Model"}
    (broken / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    if has_safetensors:
        load(broken)
    else:
        (broken / SINGLE_FILE).unlink()
        error_of(load, broken)
    assert not trace.exists()
    pickle.loads((broken / "pytorch_model.bin").read_bytes())  # a control: it would have shown
    assert trace.exists()


@pytest.mark.parametrize(
    "content", [b"\xff" * 5000, b"<!DOCTYPE html>" * 400, b"\x08" + bytes(7) + b'{"a":{}}']
)
def test_a_file_that_is_something_else_is_named(broken, load, content):
    (broken / SINGLE_FILE).write_bytes(content)
    message = error_of(load, broken)
    assert SINGLE_FILE in message
    assert "download it again" in message


def test_eight_bit_floats_are_refused(broken, load):
    name = "model.layers.0.self_attn.q_proj.weight"
    rewrite(broken, lambda t: t.update({name: t[name].to(torch.float8_e4m3fn)}))
    message = error_of(load, broken)
    assert name in message
    assert "F8_E4M3" in message
    assert "sglang" in message


def test_a_missing_tensor_is_named(broken, load):
    rewrite(broken, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    assert "lack the tensor model.layers.1.mlp.up_proj.weight" in error_of(load, broken)


def test_a_tensor_that_has_no_place_is_named(broken, load):
    rewrite(broken, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}))
    assert "model.layers.0.self_attn.q_proj.bias" in error_of(load, broken)


def test_buffers_that_old_checkpoints_carry_are_passed_over(broken, load, tiny_model, random_prompt):
    rewrite(broken, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}))
    driver = load(broken)
    prompt = random_prompt(12)
    assert driver.generate(driver.track(prompt), 5) == tiny_model("llama").greedy(prompt, 5)


def test_a_wrong_shape_is_told_with_both_shapes(broken, load):
    rewrite(broken, lambda tensors: tensors.update({"model.norm.weight": torch.ones(32)}))
    message = error_of(load, broken)
    assert "model.norm.weight" in message
    assert "(32,)" in message
    assert "(64,)" in message


def test_quantised_tensors_are_refused(broken, load):
    rewrite(broken, lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))
    message = error_of(load, broken)
    assert "I8" in message
    assert "sglang" in message


def test_an_lm_head_beside_tied_embeddings_is_not_used(tiny_model, tmp_path, load, random_prompt):
    path = tmp_path / "tied"
    model = tiny_model("qwen2")
    shutil.copytree(model.path, path)
    rewrite(path, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(320, 64)}))
    driver = load(path)
    prompt = random_prompt(12)
    assert driver.generate(driver.track(prompt), 5) == model.greedy(prompt, 5)


def test_half_precision_weights_are_widened_exactly(broken, load):
    with Weights(broken, dtype=torch.float32, device="cpu") as weights:
        wide = weights.read("model.norm.weight", 64)
    rewrite(broken, lambda t: t.update({name: tensor.bfloat16() for name, tensor in t.items()}))
    with Weights(broken, dtype=torch.float32, device="cpu") as weights:
        narrow = weights.read("model.norm.weight", 64)
    assert narrow.dtype == torch.float32
    assert torch.equal(narrow, wide.bfloat16().float())
    assert load(broken).info.dtype == "float32"


def test_the_memory_that_is_asked_for_counts_every_tensor(tiny_model):
    model = tiny_model("llama")
    with Weights(model.path, dtype=torch.bfloat16, device="cpu") as weights:
        assert weights.num_bytes() == sum(2 * p.numel() for p in model.reference.parameters())


def test_too_little_memory_is_told_before_it_is_taken(tiny_model, load):
    available = available_bytes("cpu")
    assert available is not None
    message = error_of(load, tiny_model("llama").path, num_blocks=2 * available // (3 * 2 * 8 * 32 * 4))
    assert "not enough memory" in message
    assert "kv_cache_mib" in message
    with pytest.raises(ModelError, match=r"needs 30 MiB \(10 for weights, 20 .* 29 MiB are available"):
        check_memory(weight_bytes=10 << 20, kv_bytes=20 << 20, available=29 << 20, device="cpu")
    check_memory(weight_bytes=10 << 20, kv_bytes=20 << 20, available=30 << 20, device="cpu")


def test_memory_that_the_system_does_not_give_is_a_model_error(broken):
    with (
        Weights(broken, dtype=torch.float32, device="cpu") as weights,
        pytest.raises(
            ModelError, match=r"not enough memory on cpu: model\.norm\.weight needs 1073741824 MiB"
        ),
    ):
        weights.read("model.norm.weight", 1 << 48)


@pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="only Linux counts this")
def test_weights_are_mapped_and_held_once(tmp_path):
    num_tensors, num_elements = 4, 4 << 20
    save_file({f"t{i}": torch.randn(num_elements) for i in range(num_tensors)}, tmp_path / SINGLE_FILE)

    def measured():
        status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        io = dict(line.split(":") for line in Path("/proc/self/io").read_text().splitlines())
        return int(status["RssAnon"].split()[0]) * 1024, int(io["rchar"])

    with Weights(tmp_path, dtype=torch.float32, device="cpu") as weights:
        memory, read = measured()
        tensors, most = [], 0
        for i in range(num_tensors):
            tensors.append(weights.read(f"t{i}", num_elements))
            most = max(most, measured()[0] - memory)
        size = sum(tensor.nbytes for tensor in tensors)
        assert most < 1.2 * size  # held twice, it would be 2
        assert measured()[1] - read < size / 10  # what is mapped is not read by calls


def test_a_model_directory_without_config_is_a_model_error(broken, load):
    (broken / "config.json").unlink()
    assert "config.json" in error_of(load, broken)
