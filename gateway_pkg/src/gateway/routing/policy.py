"""Which backend class and upstream model answer a request: one pure function, facts in, decision and reason out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

from gateway.http.errors import ApiError
from gateway.routing.aliases import Alias

AUTO = "auto"
DEFAULT_ALIAS = "default"


class Decision(NamedTuple):
    """`reason` goes out as `X-Router-Reason`."""

    backend_class: str
    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Names:
    """What a model's name can mean. `served`: models by class, as its backends last reported them."""

    aliases: Mapping[str, Alias]
    served: Mapping[str, Collection[str]]


def decide(model: str, backend_header: str, names: Names) -> Decision:
    """Decides the route; the first rule that matches wins.

    | condition | reason |
    |---|---|
    | header `X-Backend` names a class | `override:x-backend` |
    | the model is an alias (in any case) | `alias:model` |
    | it is `<class>:<model>`, a class, or a name that a backend serves | `pinned:model` |
    | it is empty or `auto`: the alias `default` | `direct:model` |

    Raises:
        ApiError: 400 for an unknown class, 404 for a model that nothing serves, with the nearest names.
    """
    folded = model.casefold()
    if folded == AUTO:
        model = folded = ""
    if backend_header:
        return _override(model, folded, backend_header, names)
    alias = names.aliases.get(folded)
    if alias is not None:
        return Decision(alias.backend, alias.model, "alias:model")
    if not folded:
        default = names.aliases.get(DEFAULT_ALIAS)
        if default is None:
            raise ApiError(
                400, "Name a model: this gateway has no alias 'default'", param="model", code="model_required"
            )
        return Decision(default.backend, default.model, "direct:model")
    if folded in names.served:
        return Decision(folded, _usual_model(folded, names), "pinned:model")
    prefix, separator, rest = model.partition(":")
    if separator and rest and prefix in names.served:
        return Decision(prefix, rest, "pinned:model")
    for backend_class, models in names.served.items():
        if model in models:
            return Decision(backend_class, model, "pinned:model")
    raise unknown_model(model, names)


def unknown_model(model: str, names: Names) -> ApiError:
    """404 with the nearest known names, else all aliases."""
    known = [*names.aliases, *(name for models in names.served.values() for name in models)]
    near = get_close_matches(model[:200], known, n=3, cutoff=0.5) or sorted(names.aliases)[:10]
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    return ApiError(404, f"The model '{model[:200]}' does not exist{hint}", param="model", code="model_not_found")


def _override(model: str, folded: str, backend_header: str, names: Names) -> Decision:
    backend_class = backend_header.strip().casefold()
    if backend_class not in names.served:
        known = ", ".join(sorted(names.served)) or "none"
        raise ApiError(
            400,
            f"X-Backend: unknown backend '{backend_header[:100]}'; known: {known}",
            code="backend_not_found",
        )
    alias = names.aliases.get(folded)
    if alias is not None and alias.backend == backend_class:
        return Decision(backend_class, alias.model, "override:x-backend")
    if folded in ("", DEFAULT_ALIAS, backend_class):
        return Decision(backend_class, _usual_model(backend_class, names), "override:x-backend")
    return Decision(backend_class, model.removeprefix(f"{backend_class}:"), "override:x-backend")


def _usual_model(backend_class: str, names: Names) -> str:
    """The model that a class stands for: the alias `default` when it is of that class, else its only one."""
    default = names.aliases.get(DEFAULT_ALIAS)
    if default is not None and default.backend == backend_class:
        return default.model
    models = names.served[backend_class]
    if len(models) == 1:
        return next(iter(models))
    listed = ", ".join(sorted(models)[:10]) or "none is known yet"
    raise ApiError(400, f"Name a model of backend '{backend_class}': {listed}", param="model", code="model_required")
