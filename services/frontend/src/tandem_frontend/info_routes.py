"""The routes that tell about the frontend itself."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from urllib.parse import unquote

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from tandem_common.errors import NotFound

from tandem_frontend.frontend_metrics import FrontendMetrics
from tandem_frontend.health import Health
from tandem_frontend.http_app import Handler, json_response
from tandem_frontend.http_messages import HttpRequest, HttpResponse
from tandem_frontend.models import ModelCatalog, ServedModel
from tandem_frontend.openai_responses import ModelBody, ModelList
from tandem_frontend.openapi import docs_page, openapi_document

_HTML = b"text/html; charset=utf-8"
_INDEX = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Tandem</title></head><body
style="font:16px/1.6 system-ui,sans-serif;max-width:40rem;margin:4rem auto;padding:0 1rem">
<h1>Tandem is running</h1><p>This is an OpenAI-compatible server: use <code>/v1</code> here as the base URL of any
OpenAI client.</p><ul><li><a href="/docs">What it can do</a></li><li><a href="/v1/models">Models</a></li>
<li><a href="/health">Health</a></li><li><a href="/metrics">Metrics</a></li></ul></body></html>"""


class InfoRoutes:
    """Health, models, metrics and documentation."""

    def __init__(
        self, health: Health, catalog: ModelCatalog, metrics: FrontendMetrics, started_at: int
    ) -> None:
        """`started_at`: seconds since 1970, the `created` of all models."""
        self._health = health
        self._catalog = catalog
        self._metrics = metrics
        self._started_at = started_at
        document = openapi_document(importlib.metadata.version("tandem-frontend"))
        self._document = document
        self._page = docs_page(document)

    def routes(self) -> Mapping[tuple[str, str], Handler]:
        """By method and path."""
        return {
            ("GET", "/"): self._index,
            ("GET", "/health"): self._health_report,
            ("GET", "/live"): self._live,
            ("GET", "/metrics"): self._metrics_text,
            ("GET", "/openapi.json"): self._openapi,
            ("GET", "/docs"): self._docs,
            ("GET", "/v1/models"): self._models,
            ("GET", "/v1/models/{model}"): self._model,
        }

    async def _index(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(_INDEX.encode(), content_type=_HTML)

    async def _health_report(self, request: HttpRequest) -> HttpResponse:
        report = self._health.report()
        if report.ready:
            return json_response(dataclasses.asdict(report))
        return json_response(dataclasses.asdict(report), 503, b"Retry-After: 1\r\n")

    async def _live(self, request: HttpRequest) -> HttpResponse:
        return json_response({"status": "ok"})

    async def _metrics_text(self, request: HttpRequest) -> HttpResponse:
        self._metrics.ready.set(self._health.report().ready)
        text = generate_latest(self._metrics.registry)
        return HttpResponse(text, content_type=CONTENT_TYPE_LATEST.encode())

    async def _openapi(self, request: HttpRequest) -> HttpResponse:
        return json_response(self._document)

    async def _docs(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(self._page.encode(), content_type=_HTML)

    async def _models(self, request: HttpRequest) -> HttpResponse:
        return json_response(ModelList(data=[self._body(model) for model in self._catalog.served()]))

    async def _model(self, request: HttpRequest) -> HttpResponse:
        name = unquote(request.parameter)
        for model in self._catalog.served():
            if model.name == name:
                return json_response(self._body(model))
        raise NotFound(f"the model {name[:128]!r} does not exist; see /v1/models", param="model")

    def _body(self, model: ServedModel) -> ModelBody:
        return ModelBody(id=model.name, created=self._started_at, max_model_len=model.max_context_tokens)
