"""What a server understands of what a load generator would like to ask."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Endpoint = Literal["chat", "completions"]
PATHS: dict[Endpoint, str] = {"chat": "/chat/completions", "completions": "/completions"}


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """One server's way of being asked. Words and tokens: `num_words` of ours are `overhead + scale * num_words`."""

    endpoint: Endpoint = "chat"
    model: str
    ignore_eos: bool = True  # answers are as long as was asked for
    include_usage: bool = True  # the stream ends with the server's count of tokens
    greedy: bool = True
    length_field: str = "max_tokens"
    tokens_per_word: float = 1.0
    overhead_tokens: float = 0.0  # of the chat template and a first token

    @property
    def path(self) -> str:
        """Behind the base path."""
        return PATHS[self.endpoint]

    def num_words(self, num_tokens: int, *, is_whole_prompt: bool = True) -> int:
        """Words for a prompt, or for a part of one, of `num_tokens` tokens; at least one."""
        overhead = self.overhead_tokens if is_whole_prompt else 0.0
        return max(1, round((num_tokens - overhead) / self.tokens_per_word))

    def body(self, turns: list[str], max_tokens: int) -> bytes:
        """A request: turns of user and assistant, beginning with the user."""
        content: dict[str, Any] = {"model": self.model}
        if self.endpoint == "chat":
            roles = ("user", "assistant")
            content["messages"] = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
        else:
            content["prompt"] = " ".join(turns)
        content[self.length_field] = max_tokens
        content["stream"] = True
        if self.include_usage:
            content["stream_options"] = {"include_usage": True}
        if self.ignore_eos:
            content["ignore_eos"] = True
        if self.greedy:
            content["temperature"] = 0
        return msgspec.json.encode(content)
