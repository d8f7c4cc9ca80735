"""The settings that say what a model's name means."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from gateway.config.settings import HOME, Section


class RoutingSettings(Section, heading="Backends, aliases, routing"):
    ollama_model_strong: str = Field("", description="What the bare name `ollama` stands for.")
    ollama_model_fast: str = Field("", description="The model of class `ollama` for short requests.")
    mlx_model_strong: str = Field("", description="What the bare name `mlx` stands for.")
    mlx_model_fast: str = Field("", description="The model of class `mlx` for short requests.")
    default_backend: str = Field("", description="Class for requests that name no model where no alias `default` is.")
    model_aliases_json: str = Field("", description="The model aliases as JSON; then no file is read.")
    model_aliases_path: Path = Field(HOME / "app/model_aliases.json", description="The model aliases.")
    router_enable_policy: bool = Field(
        False, description="Whether requests without a model are routed by tools, size and kind; else to `default`."
    )
    router_enable_request_type: bool = Field(
        False, description="Whether that policy looks at the kind of request, coding or not."
    )
    router_long_context_chars: int = Field(
        40_000, ge=1, description="Size from which a request is long, where the alias `long` has no context window."
    )


class EmbeddingsSettings(Section, heading="Embeddings"):
    embeddings_backend: str = Field(
        "", description="Class for embeddings that name no model; empty: the first that has the capability."
    )
    embeddings_model: str = Field("", description="Model for embeddings that name none; empty: the backend's only one.")
