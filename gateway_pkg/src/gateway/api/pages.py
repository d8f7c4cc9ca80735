"""The typed, documented routes: health, models, metrics."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from gateway.access.tokens import Caller
from gateway.backends.registry import Registry
from gateway.errors import ApiError
from gateway.observe import health
from gateway.observe.metrics import CONTENT_TYPE, Metrics
from gateway.routing.aliases import Alias
from gateway.routing.policy import AUTO, unknown_model
from gateway.web.exchange import caller_of
from gateway.web.schemas import TEXT, record

READINESS = record(ok={"type": "boolean"}, backends={"type": "object"}, problems={"type": "object"})
FIRST_MODEL = {"operationId": "get_model", "parameters": {"model_id": "$response.body#/data/0/id"}}


class Ok(BaseModel):
    ok: Literal[True] = True


class Model(BaseModel):
    """OpenAI's model object; aliases also say what they stand for."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str
    backend: str | None = None
    upstream_model: str | None = None
    context_window: int | None = None
    tools: bool | None = None
    max_tokens_cap: int | None = None
    temperature_cap: float | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class AnthropicModel(BaseModel):
    """Anthropic's model object."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: Literal["1970-01-01T00:00:00Z"] = "1970-01-01T00:00:00Z"  # unknown, in Anthropic's words
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int | None
    max_tokens: int | None


class AnthropicModels(BaseModel):
    data: list[AnthropicModel]
    has_more: Literal[False] = False
    first_id: str
    last_id: str


def make_router(registry: Registry, metrics: Metrics | None, problems: health.Problems) -> APIRouter:
    """The routes, bound to the gateway's state; `metrics` is None where METRICS_ENABLED is false."""
    router = APIRouter()

    @router.get("/health", tags=["health"], summary="The process answers")
    async def get_health() -> Ok:
        return Ok()

    @router.get(
        "/readyz",
        tags=["health"],
        summary="The gateway can serve",
        responses={503: {"description": "It cannot", "content": {"application/json": {"schema": READINESS}}}},
    )
    async def get_readyz(response: Response) -> dict[str, Any]:
        status, report = health.readiness(registry, problems())
        response.status_code = status
        return report

    @router.get(
        "/metrics",
        tags=["health"],
        summary="Prometheus metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": TEXT}}}, 404: {"description": "Metrics are off"}},
    )
    async def get_metrics() -> Response:
        if metrics is None:
            raise ApiError(404, "Metrics are off; set METRICS_ENABLED=true", code="metrics_disabled")
        return Response(metrics.text(), media_type=CONTENT_TYPE.decode())

    @router.get(
        "/v1/models",
        tags=["models"],
        summary="List models and aliases",
        response_model_exclude_none=True,
        responses={200: {"links": {"show": FIRST_MODEL}}},
    )
    async def list_models(request: Request) -> ModelList | AnthropicModels:
        """With the header `anthropic-version` in Anthropic's shape."""
        models = list(known_models(registry, caller_of(request)).values())
        if not _is_anthropics(request):
            return ModelList(data=models)
        return AnthropicModels(data=[*map(_as_anthropics, models)], first_id=models[0].id, last_id=models[-1].id)

    @router.get(
        "/v1/models/{model_id:path}",
        tags=["models"],
        summary="Show one model",
        responses={404: {"description": "Unknown model; the message has the nearest names"}},
        response_model_exclude_none=True,
    )
    async def get_model(model_id: str, request: Request) -> Model | AnthropicModel:
        """With the header `anthropic-version` in Anthropic's shape."""
        models = known_models(registry, caller_of(request))
        by_upstream = (model for model in models.values() if model.upstream_model == model_id)
        found = models.get(model_id) or models.get(model_id.casefold()) or next(by_upstream, None)
        if found is None:
            raise unknown_model(model_id, caller_of(request).known(registry.names))
        found = found.model_copy(update={"id": model_id})
        return _as_anthropics(found) if _is_anthropics(request) else found

    return router


def _is_anthropics(request: Request) -> bool:
    return "anthropic-version" in request.headers


def _as_anthropics(model: Model) -> AnthropicModel:
    context, cap = model.context_window, model.max_tokens_cap
    return AnthropicModel(id=model.id, display_name=model.id, max_input_tokens=context, max_tokens=cap)


def known_models(registry: Registry, caller: Caller) -> dict[str, Model]:
    """What the caller may name as `model`: served models, `auto`, classes and aliases, in this order."""
    names = caller.known(registry.names)
    found = [
        Model(id=f"{backend_class}:{name}", owned_by="local", backend=backend_class, upstream_model=name)
        for backend_class, models in names.served.items()
        for name in models
    ]
    found.append(Model(id=AUTO, owned_by="gateway"))
    found += [Model(id=name, owned_by="gateway", backend=name) for name in names.served]
    found += [_alias(name, alias) for name, alias in names.aliases.items()]
    return {model.id: model for model in found}


def _alias(name: str, alias: Alias) -> Model:
    return Model(
        id=name,
        owned_by="gateway",
        backend=alias.backend,
        upstream_model=alias.model,
        context_window=alias.context,
        tools=alias.tools,
        max_tokens_cap=alias.max_tokens_cap,
        temperature_cap=alias.temperature_cap,
    )
