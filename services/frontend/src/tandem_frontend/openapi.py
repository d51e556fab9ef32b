"""The OpenAPI document and a page that shows it, made from the types that read requests and write answers."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tandem_frontend import openai_responses as answers
from tandem_frontend.health import HealthReport
from tandem_frontend.openai_requests import ChatCompletionBody, CompletionBody

_REF = "#/components/schemas/{name}"
_ERRORS = {
    "400": "Something in the request is wrong; `param` names it.",
    "401": "An API key is needed.",
    "404": "No such model.",
    "413": "The body is too large.",
    "429": "Too much to do; `Retry-After` says when to try again.",
    "503": "Nobody can serve this now; `Retry-After` says when to try again.",
}


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One route of the document."""

    method: str
    path: str
    summary: str
    body: type | None = None
    answer: type | None = None
    event: type | None = None  # of server-sent events, when streaming
    media_type: str = "application/json"
    open: bool = False  # needs no key


ENDPOINTS = (
    Endpoint(
        method="post",
        path="/v1/chat/completions",
        summary="Answer a conversation.",
        body=ChatCompletionBody,
        answer=answers.ChatCompletion,
        event=answers.ChatCompletionChunk,
    ),
    Endpoint(
        method="post",
        path="/v1/completions",
        summary="Continue a text.",
        body=CompletionBody,
        answer=answers.TextCompletion,
        event=answers.TextCompletion,
    ),
    Endpoint(method="get", path="/v1/models", summary="Models that can be asked.", answer=answers.ModelList),
    Endpoint(method="get", path="/v1/models/{model}", summary="One model.", answer=answers.ModelBody),
    Endpoint(
        method="get",
        path="/health",
        summary="200 when a request would be served, else 503 with the reason.",
        answer=HealthReport,
        open=True,
    ),
    Endpoint(method="get", path="/live", summary="200 while the process lives.", open=True),
    Endpoint(method="get", path="/metrics", summary="Prometheus metrics.", media_type="text/plain"),
    Endpoint(method="get", path="/openapi.json", summary="This description."),
    Endpoint(method="get", path="/docs", summary="This description, to read.", media_type="text/html"),
)


def openapi_document(version: str) -> dict[str, Any]:
    """The document."""
    types = [kind for e in ENDPOINTS for kind in (e.body, e.answer, e.event) if kind is not None]
    _, schemas = msgspec.json.schema_components([*types, answers.ErrorAnswer], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tandem",
            "version": version,
            "description": "OpenAI-compatible API. Unknown fields are refused; every response has an x-request-id.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    content: dict[str, Any] = {endpoint.media_type: _schema(endpoint.answer)}
    if endpoint.event is not None:
        content["text/event-stream"] = _schema(endpoint.event)
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "responses": {"200": {"description": "Success.", "content": content}},
    }
    if endpoint.open:
        operation["security"] = []
    if "{model}" in endpoint.path:
        operation["parameters"] = [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": _schema(endpoint.body)},
        }
        error = {"application/json": _schema(answers.ErrorAnswer)}
        operation["responses"] |= {
            status: {"description": text, "content": error} for status, text in _ERRORS.items()
        }
    return operation


def _schema(kind: type | None) -> dict[str, Any]:
    return {"schema": {"$ref": _REF.format(name=kind.__name__)}} if kind is not None else {}


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Tandem API</title><style>
body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}}
h2{{margin-top:2.5rem}} code,pre{{font:14px/1.45 ui-monospace,monospace}}
pre{{background:#f4f4f6;padding:.8rem;overflow:auto;border-radius:6px}}
table{{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}}
td,th{{text-align:left;vertical-align:top;padding:.3rem .6rem;border-bottom:1px solid #ddd}}
.verb{{font-weight:600;text-transform:uppercase}} .note{{color:#666}}
@media (prefers-color-scheme:dark){{body{{color:#ddd;background:#17181c}} pre{{background:#23252b}}
td,th{{border-color:#3a3d45}} .note{{color:#999}}}}
</style></head><body><h1>Tandem API</h1>
<p>OpenAI-compatible; any OpenAI client works with this server's <code>/v1</code> as its base URL. The same as
<a href="/openapi.json">OpenAPI&nbsp;3.1</a>. Unknown fields are refused, every response carries
<code>x-request-id</code>, and errors come as <code>{{"error": {{"message", "type", "param", "code"}}}}</code>.</p>
<pre>{example}</pre>
<h2>Endpoints</h2><table>{endpoints}</table>
<h2>Types</h2>{types}</body></html>"""
_EXAMPLE = """curl HOST/v1/chat/completions -H 'Content-Type: application/json' -d '{
  "model": "MODEL", "stream": true,
  "messages": [{"role": "user", "content": "Hello!"}]
}'"""


def docs_page(document: Mapping[str, Any]) -> str:
    """The document as one HTML page that needs nothing else."""
    rows = [
        f'<tr><td class="verb">{method}</td><td><code>{html.escape(path)}</code></td>'
        f"<td>{html.escape(operation['summary'])}{_types_of(operation)}</td></tr>"
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas: Mapping[str, Any] = document["components"]["schemas"]
    return _PAGE.format(
        example=html.escape(_EXAMPLE),
        endpoints="".join(rows),
        types="".join(_type_table(name, schema) for name, schema in schemas.items()),
    )


def _types_of(operation: Mapping[str, Any]) -> str:
    takes = operation.get("requestBody", {}).get("content", {})
    gives = operation["responses"]["200"]["content"]
    parts = [f"takes {_type_name(media['schema'])}" for media in takes.values() if media]
    parts += [f"gives {_type_name(media['schema'])} ({kind})" for kind, media in gives.items() if media]
    return f'<br><span class="note">{"; ".join(parts)}</span>' if parts else ""


def _type_table(name: str, schema: Mapping[str, Any]) -> str:
    required: Sequence[str] = schema.get("required", ())
    rows = [
        f"<tr><td><code>{html.escape(field)}</code></td><td>{_type_name(kind)}</td>"
        f'<td class="note">{"required" if field in required else ""}</td></tr>'
        for field, kind in schema.get("properties", {}).items()
    ]
    text = html.escape(schema.get("description", ""))
    return f'<h3 id="{html.escape(name)}">{html.escape(name)}</h3><p>{text}</p><table>{"".join(rows)}</table>'


def _type_name(schema: Mapping[str, Any]) -> str:
    """A type in words, with links; empty schemas take anything."""
    if "$ref" in schema:
        name = html.escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type_name(part) for part in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"<code>{html.escape(json.dumps(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type_name(schema.get('items', {}))}"
    return html.escape(str(schema.get("type", "null or empty")))
