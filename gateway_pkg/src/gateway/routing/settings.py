"""The settings that say what a model's name means."""

from __future__ import annotations

from pathlib import Path

from gateway.config.settings import HOME, Section, setting


class RoutingSettings(Section, heading="Backends, aliases, routing"):
    ollama_model_strong: str = setting("", "Upstream model of the bare name `ollama`.")
    ollama_model_fast: str = setting("", "Upstream model of class `ollama` for short requests.")
    mlx_model_strong: str = setting("", "Upstream model of the bare name `mlx`.")
    mlx_model_fast: str = setting("", "Upstream model of class `mlx` for short requests.")
    default_backend: str = setting("", "Backend class for requests without a model, if no alias `default` exists.")
    model_aliases_json: str = setting("", "The model aliases as JSON; replaces the file.")
    model_aliases_path: Path = setting(HOME / "app/model_aliases.json", "File of the model aliases.")
    router_enable_policy: bool = setting(
        False, "Whether tools, size and kind of a request without a model choose its alias; else `default`."
    )
    router_enable_request_type: bool = setting(False, "Whether that policy also tells coding from other requests.")
    router_long_context_chars: int = setting(
        40_000, "Characters from which a request is long, if the alias `long` has no context window.", ge=1
    )


class EmbeddingsSettings(Section, heading="Embeddings"):
    embeddings_backend: str = setting(
        "", "Backend class for embeddings without a model; empty: the first class with the capability."
    )
    embeddings_model: str = setting("", "Model for embeddings without a model; empty: the backend's only model.")
