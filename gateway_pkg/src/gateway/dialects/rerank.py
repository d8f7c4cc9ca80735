"""Reranking: by a backend that reranks, else by the cosines of embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Required

from pydantic import Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from gateway.backends.call import Message, as_understood
from gateway.backends.protocols.base import json_value
from gateway.backends.registry import Route
from gateway.backends.slots import Slots
from gateway.backends.usage import usage_of
from gateway.dialects.ranking import cosines, ranking, scores_of, text_of, vectors_of
from gateway.errors import ApiError, unsupported_parameter
from gateway.features.face import Core, Feature
from gateway.routing.body import dump
from gateway.routing.policy import AUTO, DEFAULT_ALIAS
from gateway.web.endpoint import JSON_TYPE, Endpoint, parse
from gateway.web.exchange import JSON, Exchange
from gateway.web.fields import OPEN, Array
from gateway.web.schemas import TEXT, Model, Whole, record
from gateway.wire.stepwise import run

PATHS = ("/v1/rerank", "/v2/rerank", "/rerank")  # Jina's, Cohere's newer one, and that of TEI and llama.cpp
DOCUMENTS_MAX = 1_000  # Cohere's own figure
OWN_FIELDS = frozenset({"model", "query", "documents", "top_n", "return_documents", "rank_fields"})
# Cohere's fields that cosines of embeddings have no counterpart for.
RERANKER_ONLY = ("max_chunks_per_doc", "max_tokens_per_doc", "priority")


class TextDocument(TypedDict):
    text: str


@with_config(OPEN)
class RerankRequest(TypedDict, total=False):
    """As Jina's and Cohere's `POST /v1/rerank`. Other fields go to the backend as they came."""

    query: Required[Annotated[str, Field(min_length=1)]]
    documents: Required[Annotated[Array[str | TextDocument], Field(min_length=1, max_length=DOCUMENTS_MAX)]]
    model: Model | None
    top_n: Annotated[int, Field(ge=1)] | None
    return_documents: bool | None
    stream: Whole | None


REQUEST = TypeAdapter(RerankRequest)
_RESULTS = {
    "type": "array",
    "items": record({"document": {}}, index={"type": "integer"}, relevance_score={"type": "number"}),
}
RERANK_ANSWER = record(
    {"usage": {"type": "object", "description": "The backend's; absent where it reports none."}},
    object={"const": "list"},
    model=TEXT,
    results={**_RESULTS, "description": "As Jina's and Cohere's, the best first."},
    data={**_RESULTS, "description": "The same; `document` as it was sent."},
)
RERANK = Endpoint(
    "/v1/rerank",
    "rerank",
    "Order documents by how well they answer a query",
    REQUEST,
    answers={200: {JSON_TYPE: RERANK_ANSWER}},
)


class Rerank(Feature):
    name = "rerank"

    def __init__(self, core: Core) -> None:
        self._dispatcher = core.dispatcher
        self.endpoints = [(replace(RERANK, path=path), self.rank) for path in PATHS]

    async def rank(self, exchange: Exchange, endpoint: Endpoint) -> None:
        request = parse(await exchange.body(), REQUEST)
        if request.get("rank_fields") not in (None, ["text"]):
            raise unsupported_parameter("rank_fields", "only the `text` of documents is ranked")
        texts = [text_of(document) for document in request["documents"]]
        route = self._reranker(exchange, request.get("model") or "", request)
        if route is None:
            answer, scores = await self._embed(exchange, request, texts)
        else:
            answer, scores = await self._ask(exchange, route, request, texts)
        is_told = request.get("return_documents") is not False
        ranked = ranking(scores, request["documents"], request.get("top_n"), is_told)
        used = exchange.route.decision.model if exchange.route is not None else ""
        told = {"object": "list", "model": answer.get("model") or used, **ranked}
        if isinstance(usage := answer.get("usage"), dict):
            told["usage"] = usage
        await exchange.answer(200, dump(told), [JSON])

    def _reranker(self, exchange: Exchange, model: str, request: Mapping[str, Any]) -> Route | None:
        """The route to a backend that reranks; None where the model's own does not, but may embed."""
        dispatcher = self._dispatcher
        if model.casefold() in ("", AUTO, DEFAULT_ALIAS) and b"x-backend" not in exchange.headers:
            names = dispatcher.registry.names
            usual = next((name for name, able in names.capable.items() if "rerank" in able), None)
            if usual is None:
                return None
            served = names.served[usual]
            only = next(iter(served)) if len(served) == 1 else ""
            return dispatcher.routes.in_class(exchange, "rerank", only, usual, request)
        try:
            return dispatcher.routes.named(exchange, "rerank", model, request)
        except ApiError as error:
            if error.code != "capability_not_supported":
                raise
            return None

    async def _ask(
        self, exchange: Exchange, route: Route, request: dict[str, Any], texts: list[str]
    ) -> tuple[dict[str, Any], list[tuple[int, float]]]:
        given = {**request, "model": route.decision.model or None, "documents": texts, "return_documents": None}
        asked = {name: value for name, value in given.items() if value is not None}

        def say(slots: Slots) -> Message:
            return Message(slots.target, as_understood(slots, asked, dump(asked)))

        async with self._dispatcher.call(exchange, route) as call:
            answer = json_value(await call.read_json(await call.ask(say)))
            about = answer if isinstance(answer, dict) else {}
            exchange.usage = usage_of(about.get("usage"))
            return about, scores_of(answer, len(texts))

    async def _embed(
        self, exchange: Exchange, request: dict[str, Any], texts: list[str]
    ) -> tuple[dict[str, Any], list[tuple[int, float]]]:
        for name in RERANKER_ONLY:
            if request.get(name) is not None:
                raise unsupported_parameter(name, "no reranker has this model, so embeddings rank the documents")
        asked = {name: value for name, value in request.items() if name not in OWN_FIELDS}
        asked |= {"model": request.get("model") or "", "input": [request["query"], *texts]}
        async with self._dispatcher.ask(exchange, "embeddings", asked) as embedded:
            answer, lists = await embedded.embeddings()
            vectors = vectors_of(answer, len(texts) + 1, lists)
            return answer, await run(cosines(vectors, lists))
