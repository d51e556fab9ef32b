"""Typed configuration: one frozen dataclass per service, from a file, the environment and flags, in that order.

    file         TOML, named by --config or TANDEM_CONFIG; keys at the top are for every service, keys in a
                 table [router], [worker], ... for that service
    environment  TANDEM_<FIELD> for the fields of ServiceConfig, TANDEM_<SERVICE>_<FIELD> for every field
    flags        --field-name VALUE

Later sources win. An unknown key or a bad value raises ConfigError with the name, the value and the fix.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

ENV_PREFIX = "TANDEM_"
# Names that may follow the prefix without belonging to the service that reads the environment.
SERVICES = ("frontend", "router", "planner", "worker")
MIN_SECRET_CHARS = 16

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


class ConfigError(Exception):
    """The configuration cannot be used; the message says which setting, its value and the fix."""


def setting(
    default: Any,
    help: str,  # noqa: A002 - the word that argparse uses for the same thing
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    secret: bool = False,
) -> Any:
    """A field of a configuration: its one default, what it is for, and what values it takes.

    The type comes from the annotation: str, int, float, bool or tuple[str, ...] (comma-separated in the
    environment and in flags). A `secret` is never printed.
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "secret": secret,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """What every service needs to know."""

    redis_url: str = setting(
        "redis://127.0.0.1:6379/0",
        "control plane: URL of a Redis, of Sentinels (redis+sentinel://) or of a cluster (redis+cluster://)",
        secret=True,
    )
    cluster: str = setting("default", "name of the cluster: services see only those of the same name")
    cluster_secret: str = setting(
        "", f"shared secret of the cluster, at least {MIN_SECRET_CHARS} characters", secret=True
    )
    host: str = setting("127.0.0.1", "address to listen on")
    advertise_host: str = setting("", "address under which others reach this service; empty: the same")
    port: int = setting(0, "gRPC port; 0: any free one", minimum=0, maximum=65535)
    metrics_port: int = setting(0, "Prometheus port; 0: any free one, -1: none", minimum=-1, maximum=65535)
    log_level: str = setting(
        "info", "least severe level that is logged", choices=("debug", "info", "warning", "error")
    )
    log_format: str = setting(
        "auto", "auto: console on a terminal, else JSON", choices=("auto", "json", "console")
    )

    def __post_init__(self) -> None:
        """Check every value against its field; subclasses add their own checks after super()."""
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        if not self.cluster.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(
                f"cluster = {self.cluster!r}: use letters, digits, '-' and '_' (it is part of Redis keys)"
            )

    @property
    def reachable_host(self) -> str:
        """Host that others should connect to."""
        return self.advertise_host or self.host

    def secret_bytes(self) -> bytes:
        """The cluster secret; ConfigError when it is missing or too short to protect anything."""
        if len(self.cluster_secret) < MIN_SECRET_CHARS:
            raise ConfigError(
                f"cluster_secret must have at least {MIN_SECRET_CHARS} characters: set {ENV_PREFIX}CLUSTER_SECRET "
                "to the same random value for every service (`openssl rand -hex 16` makes one)"
            )
        return self.cluster_secret.encode()


C = TypeVar("C", bound=ServiceConfig)


def load_config(config_class: type[C], service: str, argv: Sequence[str], environ: Mapping[str, str]) -> C:
    """Read file, environment and flags; raises ConfigError. `--help` prints all settings and exits."""
    types = get_type_hints(config_class)
    flags = vars(_parser(config_class, service).parse_args(argv))
    path = flags.pop("config") or environ.get(f"{ENV_PREFIX}CONFIG")
    values: dict[str, Any] = {}
    if path:
        values.update(_from_file(Path(path), service, types))
    values.update(_from_environment(environ, service, types))
    values.update(
        {
            name: _parse(text, types[name], f"--{name.replace('_', '-')}")
            for name, text in flags.items()
            if text is not None
        }
    )
    return config_class(**values)


def _parser(config_class: type[ServiceConfig], service: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"tandem-{service}",
        description=(config_class.__doc__ or "").strip().splitlines()[0],
        epilog=f"Each setting can also be given as {ENV_PREFIX}{service.upper()}_NAME or in the [{service}] table of "
        "the file. Flags win over the environment, the environment over the file.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings")
    for field in dataclasses.fields(config_class):
        default = "" if field.metadata["secret"] else f" (default: {field.default!r})"
        choices = f" [{', '.join(field.metadata['choices'])}]" if field.metadata["choices"] else ""
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            dest=field.name,
            metavar="VALUE",
            help=(field.metadata["help"] + choices + default).replace("%", "%%"),
        )
    return parser


def _from_file(path: Path, service: str, types: Mapping[str, Any]) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the configuration file {path} is not valid TOML: {error}") from None
    values: dict[str, Any] = {}
    shared = {name for name in content if not isinstance(content[name], dict)}
    base = {field.name for field in dataclasses.fields(ServiceConfig)}
    _refuse_unknown(shared, base, f"{path}: top level")
    _refuse_unknown(set(content) - shared, SERVICES, f"{path}: tables")
    values.update({name: content[name] for name in shared})
    table = content.get(service, {})
    _refuse_unknown(table, types, f"{path}: [{service}]")
    values.update(table)
    return {name: _parse(value, types[name], f"{name} in {path}") for name, value in values.items()}


def _from_environment(environ: Mapping[str, str], service: str, types: Mapping[str, Any]) -> dict[str, Any]:
    base = {field.name for field in dataclasses.fields(ServiceConfig)}
    own = f"{ENV_PREFIX}{service.upper()}_"
    foreign = tuple(f"{ENV_PREFIX}{other.upper()}_" for other in (*SERVICES, "cli") if other != service)
    shared: dict[str, Any] = {}
    specific: dict[str, Any] = {}
    for variable, text in environ.items():
        if (
            not variable.startswith(ENV_PREFIX)
            or variable == f"{ENV_PREFIX}CONFIG"
            or variable.startswith(foreign)
        ):
            continue
        if variable.startswith(own):
            name = variable.removeprefix(own).lower()
            _refuse_unknown([name], types, f"environment variable {variable}")
            specific[name] = _parse(text, types[name], variable)
        else:
            name = variable.removeprefix(ENV_PREFIX).lower()
            _refuse_unknown([name], base, f"environment variable {variable}")
            shared[name] = _parse(text, types[name], variable)
    return shared | specific


def _refuse_unknown(names: Iterable[str], known: Iterable[str], where: str) -> None:
    known = sorted(known)
    for name in sorted(names):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown setting {name!r}; {hint}")


def _parse(value: Any, kind: Any, where: str) -> Any:
    """Convert text (or a TOML value) to the field's type."""
    if get_origin(kind) is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise ConfigError(f"{where} = {value!r}: expected a list of values")
        item_kind = get_args(kind)[0]
        return tuple(
            _parse(item.strip() if isinstance(item, str) else item, item_kind, where)
            for item in items
            if item != ""
        )
    if isinstance(value, bool) and kind is not bool:
        raise ConfigError(f"{where} = {value!r}: expected {_kind_name(kind)}")
    if isinstance(value, kind):
        return value
    try:
        if kind is bool and isinstance(value, str) and value.lower() in _TRUE | _FALSE:
            return value.lower() in _TRUE
        if kind is float and isinstance(value, (int, str)):
            return float(value)
        if kind is int and isinstance(value, str):
            return int(value)
    except ValueError:
        pass
    raise ConfigError(f"{where} = {value!r}: expected {_kind_name(kind)}")


def _kind_name(kind: Any) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    limits = field.metadata
    low, high, choices = limits["minimum"], limits["maximum"], limits["choices"]
    shown = "(hidden)" if limits["secret"] else repr(value)
    if choices is not None and not set(value if isinstance(value, tuple) else (value,)) <= set(choices):
        raise ConfigError(f"{field.name} = {shown}: must be one of {', '.join(choices)}")
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = " and ".join(
            part
            for part in (
                f"at least {low:g}" if low is not None else "",
                f"at most {high:g}" if high is not None else "",
            )
            if part
        )
        raise ConfigError(f"{field.name} = {shown}: must be {bounds}")
