"""Which image model a request gets: one pure function."""

from __future__ import annotations

import re

from gateway.features.images.settings import ImageSettings

_REALISTIC = re.compile(
    r"\b(?:photo-?realis\w*|realistic|photo(?:graph\w*|s)?|dslr|cinematic|bokeh|35 ?mm|85 ?mm|raw photo|ultra ?real\w*|"
    r"hyper-?real\w*|lifelike|depth of field|film grain)\b",
    re.IGNORECASE,
)


def choose_model(model: str, prompt: str, settings: ImageSettings) -> tuple[str, str]:
    """The model's name, "" for the backend's own, and the reason (`_gateway.model_reason`); the first rule wins.

    | condition | reason |
    |---|---|
    | the request names one, other than `auto` | `request:model` |
    | the prompt may decide, and asks for something realistic | `policy:images->slow` |
    | the prompt may decide | `policy:images->fast` |
    | a default is set | `config:model` |
    | otherwise none is sent | `omit:model` |
    """
    if model and model.casefold() != "auto":
        return model, "request:model"
    if settings.images_enable_request_type:
        if _REALISTIC.search(prompt):
            return settings.images_openai_model_slow, "policy:images->slow"
        return settings.images_openai_model_fast, "policy:images->fast"
    if settings.images_openai_model:
        return settings.images_openai_model, "config:model"
    return "", "omit:model"
