"""One answer, from the call to the completion: what both clients ask, and obey. Pure; time is an argument."""

from __future__ import annotations

from tandem.v1 import inference_pb2

from tandem_client.errors import DeadlineExceeded, ServerError, TandemError
from tandem_client.results import (
    Completion,
    Delta,
    TokenLogprobs,
    delta_from_proto,
    finish_reason_from_proto,
    usage_from_proto,
)
from tandem_client.retries import Attempts
from tandem_client.timeouts import Timeouts

Response = inference_pb2.GenerateResponse | inference_pb2.ChatResponse

# After the last message only the status is missing: nothing depends on it any more.
_STATUS_WAIT_S = 1.0


class Answer:
    """Collects the pieces of one answer, and knows how long to wait and whether to try again.

    The clients' loop: read one message within `patience_s`; `accept` it, or report what went wrong to
    `failed`, `timed_out` or `ended`. Each of them raises what the caller must see, or returns.
    """

    def __init__(self, attempts: Attempts, timeouts: Timeouts, now_s: float) -> None:
        self._attempts = attempts
        self._timeouts = timeouts
        self._first_token_deadline_s = now_s + timeouts.first_token_s
        self._deltas: list[Delta] = []
        self._completed: inference_pb2.Completed | None = None
        self._has_response = False
        self.request_id = ""

    @property
    def is_complete(self) -> bool:
        """Whether the last message has arrived."""
        return self._completed is not None

    def call_timeout_s(self, now_s: float) -> float:
        """The deadline to give to the server with the next attempt, from now."""
        return self._attempts.remaining_s(now_s)

    def patience_s(self, now_s: float) -> float:
        """Seconds to wait for the next message."""
        if self.is_complete:
            return _STATUS_WAIT_S
        if self._has_response:
            wait_s = self._timeouts.between_tokens_s
        else:
            wait_s = max(0.0, self._first_token_deadline_s - now_s)
        return min(wait_s, self._attempts.remaining_s(now_s))

    def accept(self, response: Response) -> Delta | None:
        """Take one message; returns the piece of the answer in it, if there is one."""
        if not self._has_response:
            self._has_response = True
            self._attempts.succeeded()
        self.request_id = response.request_id or self.request_id
        event = response.WhichOneof("event")
        if event == "completed":
            self._completed = response.completed
            return None
        if event != "delta":
            return None  # an event of a later version
        delta = delta_from_proto(response.delta)
        self._deltas.append(delta)
        return delta

    def failed(self, error: TandemError, now_s: float) -> float | None:
        """The call ended with an error: seconds until the next attempt, None when the answer is there anyway.

        Raises the error when it is final, which it always is once the server has answered anything.
        """
        if self.is_complete:
            return None
        error.request_id = error.request_id or self.request_id
        if self._has_response:
            raise error
        wait_s = self._attempts.wait_s(error, now_s)
        if now_s + wait_s >= self._first_token_deadline_s:
            raise error
        return wait_s

    def timed_out(self, now_s: float) -> None:
        """`patience_s` ran out: raises DeadlineExceeded, unless the answer is there anyway."""
        if self.is_complete:
            return
        if self._attempts.remaining_s(now_s) <= 0:
            missing = f"the answer was not complete after {self._timeouts.total_s:g} s (Timeouts.total_s)"
        elif self._has_response:
            missing = (
                f"no further token within {self._timeouts.between_tokens_s:g} s (Timeouts.between_tokens_s)"
            )
        else:
            missing = f"no token within {self._timeouts.first_token_s:g} s (Timeouts.first_token_s)"
        raise DeadlineExceeded(missing, request_id=self.request_id)

    def ended(self) -> None:
        """The server closed the stream without an error: raises ServerError if the answer is not complete."""
        if not self.is_complete:
            raise ServerError(
                "the server ended the answer before it was complete", request_id=self.request_id
            )

    def completion(self) -> Completion:
        """The whole answer; ServerError while it is not complete."""
        if self._completed is None:
            raise ServerError("the answer is not complete", request_id=self.request_id)
        logprobs: list[TokenLogprobs] = []
        token_ids: list[int] = []
        for delta in self._deltas:
            token_ids.extend(delta.token_ids)
            logprobs.extend(delta.logprobs)
        return Completion(
            text="".join(delta.text for delta in self._deltas),
            token_ids=tuple(token_ids),
            finish_reason=finish_reason_from_proto(self._completed.reason),
            usage=usage_from_proto(self._completed.usage),
            request_id=self.request_id,
            logprobs=tuple(logprobs),
            stop=self._completed.stop if self._completed.HasField("stop") else None,
        )
