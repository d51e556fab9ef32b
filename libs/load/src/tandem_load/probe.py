"""What has to be known of a server before load is made: is it there, which model, what does it understand."""

from __future__ import annotations

from typing import Any

import msgspec

from tandem_load.blocking import ask_once
from tandem_load.connection import Connector
from tandem_load.dialect import Dialect, Endpoint
from tandem_load.exchange import Exchange
from tandem_load.passages import Passages
from tandem_load.target import Target

_CONNECT_TIMEOUT_S = 10.0
_ANSWER_TIMEOUT_S = 120.0  # the first request of some servers compiles
_MAX_ATTEMPTS = 6
# Lengths of the two prompts by which words are weighed.
_FEW_WORDS, _MANY_WORDS = 24, 184
# OpenAI's endpoints refuse what they do not know; this is what can be done without, in this order.
_OPTIONAL = ("ignore_eos", "temperature", "stream_options")


class ProbeError(Exception):
    """No load can be made; the message says why, and what would help."""


class Found:
    """What the probe of a server found."""

    def __init__(self, dialect: Dialect, notes: list[str]) -> None:
        self.dialect = dialect
        self.notes = notes  # for the user: what is not as wished


def probe(target: Target, model: str | None, endpoint: Endpoint, *, ignore_eos: bool, seed: int) -> Found:
    """Ask the server a few short questions. Raises ProbeError."""
    connector = _reach(target)
    dialect = Dialect(
        model=model or _first_model(connector, target), endpoint=endpoint, ignore_eos=ignore_eos
    )
    passages = Passages()
    notes: list[str] = []

    def ask(num_words: int) -> Exchange:
        text = passages.get(num_words, seed, "probe", num_words)
        request = target.post(dialect.path, dialect.body([text], 4))
        return ask_once(connector, request, _ANSWER_TIMEOUT_S, expects_stream=True)

    for _ in range(_MAX_ATTEMPTS):
        few = ask(_FEW_WORDS)
        if few.failure is None or few.status not in (400, 422):
            break
        simpler = _simpler(dialect, few.failure.message)
        if simpler is None:
            break
        dialect = simpler[0]
        notes.append(simpler[1])
    if few.failure is not None and few.failure.kind != "empty answer":
        raise ProbeError(_explain(connector, target, dialect, few))
    many = ask(_MANY_WORDS)
    first, second = few.answer.num_prompt_tokens, many.answer.num_prompt_tokens
    if first is None or second is None or second <= first:
        notes.append(
            "the server does not say how many tokens a prompt has: lengths of prompts are in words, and tokens of "
            "answers are counted as events with text"
        )
        return Found(dialect, notes)
    scale = (second - first) / (_MANY_WORDS - _FEW_WORDS)
    overhead = max(0.0, first - scale * _FEW_WORDS)
    return Found(msgspec.structs.replace(dialect, tokens_per_word=scale, overhead_tokens=overhead), notes)


def _reach(target: Target) -> Connector:
    try:
        connector = Connector.of(target)
        connector.use_reachable(_CONNECT_TIMEOUT_S)
    except OSError as error:
        raise ProbeError(
            f"nothing answers at {target.scheme}://{target.address} ({(error.strerror or str(error)).lower()}); "
            "start a server, `tandem up` for one, or pass --url"
        ) from None
    return connector


def _first_model(connector: Connector, target: Target) -> str:
    exchange = _get_models(connector, target)
    if exchange.failure is not None:
        raise ProbeError(_explain(connector, target, None, exchange))
    names = _model_names(exchange)
    if not names:
        raise ProbeError(f"{target.url}/models lists no model; pass --model, or wait until one is served")
    return names[0]


def _get_models(connector: Connector, target: Target) -> Exchange:
    try:
        return ask_once(connector, target.get("/models"), _ANSWER_TIMEOUT_S)
    except OSError as error:
        raise ProbeError(f"{target.url}: {error.strerror or error}; is it {_other_scheme(target)}?") from None


def _model_names(exchange: Exchange) -> list[str]:
    try:
        found: Any = msgspec.json.decode(exchange.body)
        return [str(model["id"]) for model in found["data"]]
    except (msgspec.DecodeError, KeyError, TypeError):
        return []


def _simpler(dialect: Dialect, complaint: str) -> tuple[Dialect, str] | None:
    """Ask for less: what the server complains about, else the first thing that can be done without."""
    replace = msgspec.structs.replace
    wanted = {
        "ignore_eos": dialect.ignore_eos,
        "temperature": dialect.greedy,
        "stream_options": dialect.include_usage,
    }
    if "max_completion_tokens" in complaint and dialect.length_field == "max_tokens":
        return replace(
            dialect, length_field="max_completion_tokens"
        ), "the server wants max_completion_tokens"
    if dialect.model in complaint or "model" in complaint.lower().split()[:3]:
        return None
    named = [name for name in _OPTIONAL if wanted[name] and name in complaint]
    for name in named or [name for name in _OPTIONAL if wanted[name]]:
        match name:
            case "ignore_eos":
                note = "the server does not take ignore_eos: answers end where the model ends them"
                return replace(dialect, ignore_eos=False), note
            case "temperature":
                return replace(
                    dialect, greedy=False
                ), "the server does not take temperature 0: answers are sampled"
            case _:
                return replace(dialect, include_usage=False), "the server does not take stream_options"
    return None


def _explain(connector: Connector, target: Target, dialect: Dialect | None, exchange: Exchange) -> str:
    assert exchange.failure is not None
    failure = exchange.failure
    path = "/models" if dialect is None else dialect.path
    said = f"{target.url}{path}: {failure.kind}: {failure.message}"
    if exchange.status in (401, 403):
        key = "refuses this API key" if target.api_key else "wants an API key"
        return f"{target.url} {key} ({failure.message}); put it into the environment as TANDEM_CLI_API_KEY"
    if exchange.status == 404 and dialect is not None:
        names = _model_names(_get_models(connector, target))
        if names and dialect.model not in names:
            return f"{target.url} has no model {dialect.model!r}; there are: {', '.join(names[:20])}"
        return f"{said}; is there another --endpoint?"
    if exchange.status == 429:
        return f"{said}; the server is too busy even for one short request"
    if exchange.status == 0:
        return f"{said}; is it {_other_scheme(target)}?"
    return said


def _other_scheme(target: Target) -> str:
    return f"{'http' if target.scheme == 'https' else 'https'}://{target.address}"
