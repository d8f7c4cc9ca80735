"""Ollama's native protocol."""

from __future__ import annotations

from gateway.backends.protocols.ollama.answer import OllamaAdapter, models
from gateway.backends.protocols.wire_protocol import Implied, Listing, WireProtocol

CHATTING = ("chat", "completions", "embeddings")
PROTOCOL = WireProtocol(
    name="ollama",
    about="Ollama's own API: `/api/chat`, `/api/generate`, `/api/embed`, translated both ways",
    capabilities=frozenset(CHATTING),
    probe="/api/version",
    models=Listing("/api/tags", models),
    loaded=Listing("/api/ps", models),
    chat=OllamaAdapter(),
    implied=(Implied("ollama_base_url", CHATTING, {"chat": 4, "embeddings": 4}, backend_class="ollama"),),
)
