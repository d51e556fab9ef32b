"""Which models can be asked now, from the workers' cards.

A frontend has the files of one model. It serves every name under which a worker with the same files (equal model
revision) is registered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from tandem.v1 import cluster_pb2 as pb
from tandem_common.errors import NotFound, Unavailable
from tandem_common.logs import get_logger
from tandem_common.registry import RegisteredWorker

from tandem_frontend.tokenizer import ModelTokenizer

RETRY_AFTER_MS = 1000
_DECODE_ROLES = (pb.ROLE_DECODE, pb.ROLE_BOTH)

_log = get_logger("models")


class WorkerView(Protocol):
    """The registry as `tandem_common.registry.ClusterWatcher` keeps it."""

    @property
    def workers(self) -> Mapping[str, RegisteredWorker]:
        """All registered workers by id: another mapping whenever something has changed."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """One model as its workers describe it; the smallest value of each where they differ."""

    name: str
    revision: str
    block_size: int
    max_context_tokens: int
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """The files that this frontend has."""

    name: str  # under which it would be served
    revision: str
    tokenizer: ModelTokenizer


class ModelCatalog:
    """Answers by name. Pure but for a log line when a worker has other files than we do."""

    def __init__(self, view: WorkerView, local: LocalModel) -> None:
        self._view = view
        self.local = local
        self._reported: dict[str, str] = {}  # worker id → revision that was complained about
        self._seen: Mapping[str, RegisteredWorker] | None = None
        self._served: list[ServedModel] = []  # by those

    def served(self) -> list[ServedModel]:
        """All models that can be asked now, by name."""
        if self._view.workers is not self._seen:
            self._seen = self._view.workers
            self._served = self._by_cards()
        return self._served

    def find(self, name: str) -> ServedModel:
        """The model called `name`; NotFound lists those there are, Unavailable when there are none."""
        models = self.served()
        for model in models:
            if model.name == name:
                return model
        if not models:
            reason = (
                "the workers have other files of the model than this frontend"
                if self._view.workers
                else "no worker is there yet"
            )
            raise Unavailable(f"no model can be served now: {reason}", retry_after_ms=RETRY_AFTER_MS)
        known = ", ".join(repr(model.name) for model in models)
        raise NotFound(f"the model {name[:128]!r} does not exist; there are: {known}", param="model")

    def decode_workers(self, name: str) -> list[pb.WorkerCard]:
        """Cards of the workers that can take a request for a model now, by worker id."""
        return [
            worker.card
            for _, worker in sorted(self._view.workers.items())
            if worker.card.model == name
            and worker.card.model_revision == self.local.revision
            and worker.card.status == pb.WORKER_STATUS_SERVING
            and worker.card.role in _DECODE_ROLES
        ]

    def _by_cards(self) -> list[ServedModel]:
        cards: dict[str, list[pb.WorkerCard]] = {}
        for worker in self._view.workers.values():
            if worker.card.model_revision == self.local.revision:
                cards.setdefault(worker.card.model, []).append(worker.card)
            else:
                self._report(worker.card)
        return [_served(name, cards[name]) for name in sorted(cards)]

    def _report(self, card: pb.WorkerCard) -> None:
        if self._reported.get(card.worker_id) == card.model_revision:
            return
        if len(self._reported) > 1000:
            self._reported.clear()
        self._reported[card.worker_id] = card.model_revision
        _log.error(
            "worker has other files of the model; give frontend and workers the same --model",
            worker_id=card.worker_id,
            model=card.model,
            worker_revision=card.model_revision,
            frontend_revision=self.local.revision,
        )


def _served(name: str, cards: list[pb.WorkerCard]) -> ServedModel:
    return ServedModel(
        name=name,
        revision=cards[0].model_revision,
        block_size=cards[0].block_size,
        max_context_tokens=min(card.max_context_tokens for card in cards),
        vocab_size=min(card.vocab_size for card in cards),
    )
