import json
import struct
from pathlib import Path

import pytest
from tandem_common.model_source import ModelNotFound, model_revision, read_json, resolve_model, served_name


def make_model(path: Path, *, weights: bytes = b"\x01" * 64, config: str = "{}") -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(config)
    header = json.dumps({"w": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + weights)
    return path


def test_a_directory_is_served_under_its_name(tmp_path: Path) -> None:
    path = make_model(tmp_path / "tiny")
    assert resolve_model(str(path)) == path
    assert served_name(str(path) + "/") == "tiny"
    assert served_name("org/name-7b") == "name-7b"


@pytest.mark.parametrize(
    ("model", "expected"),
    [("no/such/dir", "not a directory"), ("./missing", "not a directory"), (".", "no config.json")],
)
def test_what_is_no_model_is_refused_with_the_reason(
    model: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound, match=expected):
        resolve_model(model)


def test_the_revision_changes_with_content_and_not_with_the_place(tmp_path: Path) -> None:
    one = model_revision(make_model(tmp_path / "one"))
    assert model_revision(make_model(tmp_path / "copy")) == one
    assert model_revision(make_model(tmp_path / "retrained", weights=b"\x02" * 64)) != one
    assert model_revision(make_model(tmp_path / "other", config='{"a": 1}')) != one


def test_torn_weights_still_have_a_revision(tmp_path: Path) -> None:
    make_model(tmp_path / "m")
    for torn in (b"", b"abc", struct.pack("<Q", 2**60) + b"x"):
        (tmp_path / "m" / "model.safetensors").write_bytes(torn)
        assert len(model_revision(tmp_path / "m")) == 32


@pytest.mark.parametrize(("content", "expected"), [("{", "not valid JSON"), ("[1]", "JSON object")])
def test_a_broken_json_file_is_named(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelNotFound, match=f"config.json.*{expected}"):
        read_json(tmp_path / "config.json")
