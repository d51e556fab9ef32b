"""`tandem chat`: talk to a model in the terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from tandem_client import AnswerStream, Client, GenerationOptions, Model, NotFound, TandemError, Unavailable
from tandem_common.config import ConfigError

from tandem_cli.chat_session import ChatSession, printable
from tandem_cli.run_file import run_files_dir, running_stacks

_DEFAULT_ADDRESS = "127.0.0.1:8001"


def chat(
    prompt: Annotated[
        str | None, typer.Argument(help="One question; its answer is printed and nothing else is asked.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="gRPC HOST:PORT of a frontend.", show_default="the stack on this machine, else :8001"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model to ask.", show_default="the first that is served")
    ] = None,
    system: Annotated[str, typer.Option(help="What the model is told before the conversation.")] = "",
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens of an answer.", show_default="what the context holds"),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="0 always takes the likeliest token.")
    ] = 0.0,
    api_key: Annotated[
        str | None, typer.Option(envvar="TANDEM_CLI_API_KEY", help="Key that the frontend asks for.")
    ] = None,
) -> None:
    """Talk to a model: answers stream in, Ctrl-C stops one, Ctrl-D leaves.

    With PROMPT, or with text on standard input, it answers once, on standard output.
    """
    options = GenerationOptions(temperature=temperature)
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    where = address or _local_address()
    try:
        client = Client(where, api_key=api_key or None)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    with client:
        try:
            session = ChatSession(client, _choose_model(client, model), system, options)
            if prompt is not None or not sys.stdin.isatty():
                _answer_once(session, prompt if prompt is not None else sys.stdin.read())
            else:
                _converse(session)
        except Unavailable as error:
            raise ConfigError(
                f"nothing answers at {where} ({error}); start a stack with `tandem up`, or pass --address"
            ) from None
        except TandemError as error:
            raise ConfigError(str(error)) from None


def _local_address() -> str:
    stacks = running_stacks(run_files_dir(os.environ))
    return stacks[0].grpc_address if stacks else _DEFAULT_ADDRESS


def _choose_model(client: Client, name: str | None) -> Model:
    models = client.list_models()
    if not models:
        raise Unavailable("no model is served yet")
    for model in models:
        if name is None or model.id == name:
            return model
    raise NotFound(f"no model {name!r} is served; there are: {', '.join(model.id for model in models)}")


def _answer_once(session: ChatSession, text: str) -> None:
    if not text.strip():
        raise ConfigError("there is nothing to answer: pass a PROMPT, or text on standard input")
    _print_answer(session, text)


def _converse(session: ChatSession) -> None:
    import readline  # noqa: F401 - gives input() editing and a history

    console = Console(stderr=True)
    console.print("Ctrl-C stops an answer, Ctrl-D leaves.", style="dim")
    while True:
        try:
            text = input("\n> ")
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print()
            continue
        if not text.strip():
            continue
        try:
            _print_answer(session, text)
        except Unavailable:
            raise
        except TandemError as error:
            session.answered("")
            console.print(str(error), style="red", markup=False, highlight=False)


def _print_answer(session: ChatSession, text: str) -> None:
    """Stream one answer to stdout, and what it took to stderr; Ctrl-C ends it, and what came is remembered."""
    num_forgotten = session.num_forgotten
    started_s = time.monotonic()
    first_s: float | None = None
    num_tokens = 0
    pieces: list[str] = []
    with session.ask(text) as stream, _closed_by_interrupt(stream) as interrupted:
        for delta in stream:
            first_s = first_s if first_s is not None else time.monotonic() - started_s
            num_tokens += len(delta.token_ids)
            pieces.append(delta.text)
            sys.stdout.write(printable(delta.text))
            sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    session.answered("".join(pieces))
    notes = [describe_speed(num_tokens, first_s, time.monotonic() - started_s)]
    if interrupted.is_set():
        notes.append("stopped")
    if session.num_forgotten > num_forgotten:
        notes.append("the oldest turns no longer fit the context and were forgotten")
    Console(stderr=True).print("; ".join(notes), style="dim", highlight=False)


@contextlib.contextmanager
def _closed_by_interrupt(stream: AnswerStream) -> Iterator[threading.Event]:
    """Ctrl-C closes the stream, and the event says so.

    From a thread: an exception in the middle of gRPC's waiting can leave its locks such that nothing wakes it again.
    """
    interrupted = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        threading.Thread(target=stream.close, name="tandem-chat-stop").start()

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)


def describe_speed(num_tokens: int, first_s: float | None, total_s: float) -> str:
    """Tokens, tokens per second after the first, and the time to the first."""
    if first_s is None:
        return "no tokens"
    streaming_s = total_s - first_s
    rate = f", {(num_tokens - 1) / streaming_s:.1f} tokens/s" if num_tokens > 1 and streaming_s > 0 else ""
    return f"{num_tokens} tokens{rate}, first after {first_s:.2f} s"
