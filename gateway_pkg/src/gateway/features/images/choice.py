"""Which image model a request gets: one pure function."""

from __future__ import annotations

import re
from typing import NamedTuple

_REALISTIC = re.compile(
    r"\b(?:photo-?realis\w*|realistic|photo(?:graph\w*|s)?|dslr|cinematic|bokeh|35 ?mm|85 ?mm|raw photo|ultra ?real\w*|"
    r"hyper-?real\w*|lifelike|depth of field|film grain)\b",
    re.IGNORECASE,
)


class ImageModels(NamedTuple):
    """The settings IMAGES_OPENAI_MODEL, IMAGES_OPENAI_MODEL_FAST, _SLOW and IMAGES_ENABLE_REQUEST_TYPE."""

    default: str = ""
    fast: str = ""
    slow: str = ""
    by_prompt: bool = False


def choose_model(model: str, prompt: str, models: ImageModels) -> tuple[str, str]:
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
    if models.by_prompt:
        if _REALISTIC.search(prompt):
            return models.slow, "policy:images->slow"
        return models.fast, "policy:images->fast"
    if models.default:
        return models.default, "config:model"
    return "", "omit:model"
