"""Client of Tandem's gRPC API, sync and async.

>>> from tandem_client import Client
>>> with Client("127.0.0.1:8001") as client:
...     with client.stream_chat("Tell me a story.", model="tandem-tiny", max_tokens=64) as stream:
...         for delta in stream:
...             assert isinstance(delta.text, str)  # print(delta.text, end="", flush=True)
...         assert stream.completion.usage.completion_tokens <= 64

`Client` and `AsyncClient` have the same calls: `generate` and `chat` return the whole answer, `stream_generate`
and `stream_chat` give it piece by piece; `tokenize` and `list_models` do what they say. `GenerationOptions`
lists the keyword arguments of all generating calls, `errors` the tree of what is raised.
"""

from tandem_client.async_client import AsyncClient
from tandem_client.async_stream import AsyncAnswerStream
from tandem_client.errors import (
    Cancelled,
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    ServerError,
    TandemError,
    Unauthenticated,
    Unavailable,
)
from tandem_client.requests import ChatMessage, GenerationOptions, Messages
from tandem_client.results import Completion, Delta, FinishReason, Model, TokenLogprobs, TopToken, Usage
from tandem_client.retries import RetryPolicy
from tandem_client.sync_client import Client
from tandem_client.sync_stream import AnswerStream
from tandem_client.timeouts import Timeouts

__all__ = [
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncClient",
    "Cancelled",
    "ChatMessage",
    "Client",
    "Completion",
    "Conflict",
    "DeadlineExceeded",
    "Delta",
    "FinishReason",
    "GenerationOptions",
    "InvalidRequest",
    "Messages",
    "Model",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "RetryPolicy",
    "ServerError",
    "TandemError",
    "Timeouts",
    "TokenLogprobs",
    "TopToken",
    "Unauthenticated",
    "Unavailable",
    "Usage",
]
