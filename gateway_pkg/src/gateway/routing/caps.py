"""An alias's caps, applied under every field name that servers have for a limit.

A backend that speaks OpenAI's protocol may be any server, and may proxy to any other. So every name is bounded for
every backend: a server ignores the names that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.errors import ApiError, invalid_value
from gateway.routing.aliases import Alias

# Either bounds a chat (OpenAI's own server refuses both together); only the first bounds a completion.
OUTPUT_LIMITS = ("max_tokens", "max_completion_tokens")
# The servers' names for the length of an answer.
_TOKEN_NAMES = frozenset(
    {
        *(*OUTPUT_LIMITS, "max_output_tokens", "max_tokens_to_sample"),  # OpenAI's
        "n_predict",  # llama.cpp's, which overrides both of OpenAI's
        "num_predict",  # Ollama's
        "min_tokens",  # vLLM's
        *("max_new_tokens", "min_new_tokens"),  # TGI's
        *("max_length", "min_length"),  # TabbyAPI's
    }
)
# Names for the highest temperature: OpenAI's, TabbyAPI's, Aphrodite's.
_TEMPERATURE_NAMES = frozenset(
    ("temperature", "max_temp", "min_temp", "dynatemp_low", "dynatemp_high", "dynatemp_min", "dynatemp_max")
)
_SPREAD = "dynatemp_range"  # llama.cpp's: how far the temperature goes up and down
_TOOLS = ("tools", "functions")  # `functions` is OpenAI's name of 2023, which servers still take
# Objects within a request whose fields servers read as the request's own: Ollama's, LiteLLM's, TGI's and SGLang's,
# and the template arguments of vLLM and llama.cpp.
PLACES = ("options", "extra_body", "parameters", "sampling_params", "chat_template_kwargs")
# Fields that undo a cap, by cap: LiteLLM drops the fields that they name, or sends the request to another model;
# text-generation-webui lengthens an answer to the context, and takes the temperature from a preset; llama.cpp applies
# the temperature only as one of its samplers.
_LITELLM = ("additional_drop_params", "fallbacks", "context_window_fallbacks", "content_policy_fallbacks")
_UNDONE_BY: Mapping[str, tuple[str, ...]] = {
    "max_tokens_cap": (*_LITELLM, "auto_max_new_tokens", "preset"),
    "temperature_cap": (*_LITELLM, "preset", "samplers"),
}
_ALL = _TOKEN_NAMES | _TEMPERATURE_NAMES | {_SPREAD, *_TOOLS, *PLACES}.union(*_UNDONE_BY.values())
_LEAST = frozenset({"min_tokens", "min_new_tokens", "min_length"})  # lower bounds: they do not end an answer


def within_limits(alias: Alias, request: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that must change to keep the request within the alias's caps.

    A cap holds for each answer: `n` and `best_of` ask for several. A request without a limit of output gets the cap.

    Raises:
        ApiError: 400 for tools where the alias refuses them, and for a field that cannot be bounded.
    """
    changes = _bounded(alias, request, "")
    for place in PLACES:
        content = request.get(place)
        if isinstance(content, dict) and (inner := _bounded(alias, content, f"{place}.")):
            changes[place] = {**content, **inner}
    cap = alias.max_tokens_cap
    limits = OUTPUT_LIMITS[:1] if "prompt" in request else OUTPUT_LIMITS
    if cap is not None and all(request.get(name) is None for name in limits):
        bounded = {**request, **changes}
        holders = [bounded, *(bounded[place] for place in PLACES if isinstance(bounded.get(place), dict))]
        given = (holder.get(name) for holder in holders for name in _TOKEN_NAMES - _LEAST)
        changes["max_tokens"] = min((value for value in given if value is not None), default=cap)
    return changes


def _bounded(alias: Alias, fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields that must change in the request, or in an object within it; `where` is that object's prefix."""
    changes: dict[str, Any] = {}
    for name in fields:
        # Servers in Go take a field's name in any case.
        if name not in _ALL and name.casefold() in _ALL:
            raise invalid_value(where + name, f"write it '{name.casefold()}'")
        if where and name in PLACES:
            raise invalid_value(where + name, "leave it out: it is nested too deep to be bounded")
    if alias.tools is False:
        for name in _TOOLS:
            if fields.get(name):
                message = f"tools not allowed for model alias '{fields.get('model') or alias.model}'"
                raise ApiError(400, message, param=where + name, code="tools_not_allowed")
    for cap, names in _UNDONE_BY.items():
        if getattr(alias, cap) is not None:
            for name in names:
                if fields.get(name) not in (None, False):
                    raise invalid_value(where + name, f"leave it out: it would undo the alias's {cap}")
    if (most := alias.max_tokens_cap) is not None:
        for name in _TOKEN_NAMES & fields.keys():
            # Some servers read 0 or less as "without end", and a fraction below 1 as 0.
            if (value := _number(fields, name, where)) is not None and not 1 <= value <= most:
                changes[name] = most
    if (hottest := alias.temperature_cap) is not None:
        for name in _TEMPERATURE_NAMES & fields.keys():
            if (value := _number(fields, name, where)) is not None and not value <= hottest:
                changes[name] = hottest
        spread = _number(fields, _SPREAD, where)
        if spread is not None:
            usual = changes.get("temperature", fields.get("temperature"))
            room = hottest - usual if usual is not None else 0
            if not spread <= room:
                changes[_SPREAD] = room
    return changes


def _number(fields: Mapping[str, Any], name: str, where: str) -> float | None:
    """The number, None where it is absent or null. Strings are refused: only some servers read them as numbers."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise invalid_value(where + name, "must be a number")
    return value
