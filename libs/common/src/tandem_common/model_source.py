"""Where a model's files are, and the digest that names their content."""

from __future__ import annotations

import json
import struct
from hashlib import blake2b
from pathlib import Path

from tandem_common.config import ConfigError

# Everything that decides which tokens come out, and nothing that does not. Weights are named by their headers: the
# names, shapes and places of the tensors; reading gigabytes to hash them would double the start-up time.
_CONTENT_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
_MAX_HEADER_BYTES = 100 << 20
# Enough bytes of the first tensors to tell a retrained model from the one before.
_SAMPLED_WEIGHT_BYTES = 64 << 10


class ModelNotFound(ConfigError):
    """The model is neither a directory nor to be had from the hub."""


def resolve_model(model: str) -> Path:
    """Directory with config.json, downloading from the Hugging Face hub when `model` is an id like org/name."""
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFound(
                f"{model} has no config.json; point to the directory that holds the model's files"
            )
        return path
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise ModelNotFound(f"model {model!r} is not a directory here, nor a hub id like org/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelNotFound(f"to fetch {model!r} from the hub: pip install huggingface-hub") from None
    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_FILES))
    except Exception as error:  # noqa: BLE001 - the hub's client raises many kinds; all mean the same here
        raise ModelNotFound(
            f"cannot fetch {model!r} from the hub ({type(error).__name__}); check the id and the network, "
            "or download it elsewhere and pass the directory"
        ) from None


def served_name(model: str) -> str:
    """Name under which a model is served unless told otherwise: the last part of its path or id."""
    return (
        Path(model).expanduser().resolve().name
        if Path(model).expanduser().exists()
        else model.rsplit("/", 1)[-1]
    )


def model_revision(path: Path) -> str:
    """Digest (32 hex digits) of a model directory: configuration, tokenizer, weights' headers and a sample of each."""
    digest = blake2b(digest_size=16, key=b"tandem model v1")
    for name in _CONTENT_FILES:
        if (path / name).is_file():
            _update(digest, name, (path / name).read_bytes())
    for shard in sorted(path.glob("*.safetensors")):
        _update(digest, shard.name, _weights_sample(shard))
    return digest.hexdigest()


def _update(digest: blake2b, name: str, content: bytes) -> None:
    for part in (name.encode(), content):
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)


def _weights_sample(shard: Path) -> bytes:
    with shard.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            return prefix
        (length,) = struct.unpack("<Q", prefix)
        if length > _MAX_HEADER_BYTES:
            return prefix
        return prefix + file.read(length) + file.read(_SAMPLED_WEIGHT_BYTES)


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a model's directory; ModelNotFound when it is missing or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelNotFound(f"cannot read {path.name} of the model: {error.strerror}") from None
    except ValueError as error:
        raise ModelNotFound(f"{path.name} of the model is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelNotFound(f"{path.name} of the model must hold a JSON object")
    return content
