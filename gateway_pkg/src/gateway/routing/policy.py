"""Chooses the backend class and the upstream model for a request: pure functions, facts in, decision out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from heapq import nlargest
from itertools import chain
from typing import NamedTuple

from gateway.errors import ApiError
from gateway.routing.aliases import Alias
from gateway.routing.request_type import is_coding
from gateway.routing.settings import RoutingSettings

AUTO = "auto"
DEFAULT_ALIAS = "default"
MODEL_MAX_CHARS = 500  # of a model's name in a request, which is a key of the cache of routes
NEAR_MAX_CHARS = 200  # of a name that a 404 suggests
NEAR_MAX_NAMES = 50  # names that a 404 compares
NEAR_LEAST = 0.5  # least similarity of a suggested name, as difflib counts it
CHARS_PER_TOKEN = 4  # the usual estimate for English text
TEMPLATE_MAX_TOKENS = 1_024  # that a chat template may add; the system prompts of some templates have hundreds


class Decision(NamedTuple):
    """`reason` goes out as `X-Router-Reason`; `alias` is the alias that the request named or the policy chose."""

    backend_class: str
    model: str
    reason: str
    alias: Alias | None = None


class Facts(NamedTuple):
    """What a decision may depend on beside the model's name and `X-Backend`; collected only when needed.

    `chars` counts all texts, `size` the bytes of the JSON that holds them; `tokens` is a tokenizer's count, or None
    without one.
    """

    request_type: str = ""
    has_tools: bool = False
    chars: int = 0
    last_user_text: str = ""
    size: int = 0
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Names:
    """The names that a request's model can resolve to.

    `served`: models by class, as its backends last reported them; `capable`: the capabilities of each class;
    `strong` and `fast`: a class's models of that rank, where the settings name one; `synonyms`: other names of
    classes (`legacy_mapping`); `default_class` for requests that name no model, where no alias `default` is;
    `embedder`: class and model for embeddings that name no model, each "" where the settings name none.
    """

    aliases: Mapping[str, Alias]
    served: Mapping[str, Collection[str]]
    capable: Mapping[str, Collection[str]] = field(default_factory=dict)
    strong: Mapping[str, str] = field(default_factory=dict)
    fast: Mapping[str, str] = field(default_factory=dict)
    synonyms: Mapping[str, str] = field(default_factory=dict)
    default_class: str = ""
    embedder: tuple[str, str] = ("", "")

    def class_of(self, name: str) -> str:
        """The class of a case-folded name, "" for an unknown one; `<class>-default` is a name of the class too."""
        name = name.removesuffix("-default")
        name = self.synonyms.get(name, name)
        return name if name in self.served else ""


def decide(model: str, backend_header: str, capability: str, names: Names) -> Decision | None:
    """Decides the route of a request that names a model or a backend class; the first rule that matches wins.

    | condition | reason |
    |---|---|
    | header `X-Backend` names a class | `override:x-backend` |
    | the model is an alias (in any case) | `alias:model` |
    | it is `<class>:<model>`, a class, `<class>-default`, or a name that a backend serves | `pinned:model` |

    None for a request without a model, or with `auto`: `decide_by_policy` decides its route.

    Raises:
        ApiError: 400 for an unknown class, 404 for a model that no backend serves, with the nearest names.
    """
    folded = model.casefold()
    if folded == AUTO:
        model = folded = ""
    if backend_header:
        decision = _override(model, folded, backend_header, names)
        return decision if decision.model else decision._replace(model=_strong(decision.backend_class, names))
    if alias := names.aliases.get(folded):
        return _to_alias(alias, "alias:model")
    if not folded:
        return None
    if backend_class := names.class_of(folded):
        return Decision(backend_class, _strong(backend_class, names), "pinned:model")
    prefix, separator, rest = model.partition(":")
    if separator and rest and (backend_class := names.class_of(prefix.casefold())):
        return Decision(backend_class, rest, "pinned:model")
    for name in (model, f"{model}:latest"):  # Ollama lists each model with its tag
        serving = [backend_class for backend_class, models in names.served.items() if name in models]
        if serving:
            able = [backend_class for backend_class in serving if capability in names.capable.get(backend_class, ())]
            return Decision((able or serving)[0], name, "pinned:model")
    raise unknown_model(model, names)


def decide_by_policy(facts: Facts, names: Names, rules: RoutingSettings) -> Decision:
    """Decides the route of a request that names no model; the first rule that matches wins.

    | condition | goes to the first that exists | reason |
    |---|---|---|
    | the policy is off | alias `default`, the default class's strong model | `direct:model` |
    | it has tools | alias `default`, then `coder`, unless `tools` is false there | `policy:tools->alias:…` |
    | | the strong model | `policy:tools->strong` |
    | it is long | alias `long` | `policy:long_context->alias:long` |
    | | class `mlx`; the strong model | `policy:long_context->mlx`, `policy:long_context->strong` |
    | it is about code (if enabled) | alias `coder`; the strong model | `policy:coding->alias:coder`, `…->strong` |
    | any other | alias `fast`; the fast model | `policy:fast->alias:fast`, `policy:fast` |

    A text is long from as many tokens as alias `long` has context, at 4 characters a token without a tokenizer's count;
    without such an alias, from ROUTER_LONG_CONTEXT_CHARS characters.

    Raises:
        ApiError: 400 when neither an alias nor a class has a model for the request.
    """
    if not rules.router_enable_policy:
        default = names.aliases.get(DEFAULT_ALIAS)
        return _to_alias(default, "direct:model") if default else _to_strong("direct:model", names)
    if facts.has_tools:
        for name in (DEFAULT_ALIAS, "coder"):
            if (alias := names.aliases.get(name)) and alias.tools is not False:
                return _to_alias(alias, f"policy:tools->alias:{name}")
        return _to_strong("policy:tools->strong", names)
    long = names.aliases.get("long")
    if _is_long(facts, long, rules):
        if long is not None:
            return _to_alias(long, "policy:long_context->alias:long")
        if mlx := names.class_of("mlx"):
            return Decision(mlx, _strong(mlx, names), "policy:long_context->mlx")
        return _to_strong("policy:long_context->strong", names)
    if rules.router_enable_request_type and is_coding(facts.request_type, facts.last_user_text):
        if coder := names.aliases.get("coder"):
            return _to_alias(coder, "policy:coding->alias:coder")
        return _to_strong("policy:coding->strong", names)
    if fast := names.aliases.get("fast"):
        return _to_alias(fast, "policy:fast->alias:fast")
    backend_class = _default_class(names)
    return Decision(backend_class, names.fast.get(backend_class) or _strong(backend_class, names), "policy:fast")


def worth_counting(facts: Facts, names: Names, rules: RoutingSettings) -> Alias | None:
    """The alias whose tokenizer could change what `decide_by_policy` decides, else None.

    A count cannot matter when the text is below the alias's context even at a token a byte: a token has a byte or more,
    and JSON has at least as many bytes as its text.
    """
    long = names.aliases.get("long")
    if not rules.router_enable_policy or facts.has_tools or long is None or not long.context:
        return None
    return long if facts.size + TEMPLATE_MAX_TOKENS >= long.context else None


def _is_long(facts: Facts, long: Alias | None, rules: RoutingSettings) -> bool:
    if long is None or not long.context:
        return facts.chars >= rules.router_long_context_chars
    tokens = facts.chars / CHARS_PER_TOKEN if facts.tokens is None else facts.tokens
    return tokens >= long.context


def decide_embedder(names: Names) -> Decision:
    """The route of embeddings without a model, or with `auto` or `default`: the settings', else the first able class.

    Raises:
        ApiError: 400 when no class has the capability, or the class has several models and no setting names one.
    """
    wanted, model = names.embedder
    default = names.aliases.get(DEFAULT_ALIAS)
    if not wanted and default is not None and "embeddings" in names.capable.get(default.backend, ()):
        return _to_alias(default, "direct:model")
    able = [name for name in names.served if "embeddings" in names.capable.get(name, ())]
    backend_class = names.class_of(wanted.casefold()) if wanted else (able or [""])[0]
    if not backend_class:
        unknown = f"EMBEDDINGS_BACKEND names an unknown backend '{wanted}'"
        why = unknown if wanted else "no backend has the capability embeddings"
        raise ApiError(400, f"Name a model: {why}", param="model", code="model_required")
    return Decision(backend_class, model or _strong(backend_class, names), "direct:model")


def decide_in_class(model: str, backend_header: str, capability: str, usual: str, names: Names) -> Decision:
    """Decides the route of a request of a kind that has a class of its own, such as images: `usual`.

    As `decide`; but a name that means nothing is left to that class (`direct:model`), since its servers need not list
    what they have. The model may be "": it is the server's own choice then.
    """
    folded = "" if model.casefold() == AUTO else model.casefold()
    if backend_header:
        return _override(model, folded, backend_header, names)
    if (alias := names.aliases.get(folded)) and capability in names.capable.get(alias.backend, ()):
        return _to_alias(alias, "alias:model")
    prefix, separator, rest = model.partition(":")
    backend_class = names.class_of(prefix.casefold())
    if backend_class and capability in names.capable.get(backend_class, ()):
        return Decision(backend_class, rest if separator else "", "pinned:model")
    for backend_class, models in names.served.items():
        if model in models and capability in names.capable.get(backend_class, ()):
            return Decision(backend_class, model, "pinned:model")
    return Decision(usual, model if folded and folded != DEFAULT_ALIAS else "", "direct:model")


def unknown_model(model: str, names: Names) -> ApiError:
    """404 with the nearest known names, else the aliases; and with the classes that have not reported models yet."""
    near = _nearest(model, chain(names.aliases, *names.served.values()))
    hint = f"; did you mean {', '.join(near)}?" if near else "; /v1/models lists the names"
    if not near and names.aliases:
        hint += f", such as {', '.join(sorted(names.aliases)[:10])}"
    silent = [name for name, models in names.served.items() if not models and "chat" in names.capable.get(name, ())]
    if silent:
        hint += f" (the models of {', '.join(silent[:10])} are not known yet; /readyz says why)"
    return ApiError(404, f"The model '{model[:200]}' does not exist{hint}", param="model", code="model_not_found")


def _nearest(model: str, known: Iterable[str]) -> list[str]:
    """At most 3 names like `model`. difflib takes 0.1 to 0.5 ms a name, so it sees only the likeliest by letters."""
    asked = model[:NEAR_MAX_CHARS]
    letters = set(asked.casefold())
    likely = nlargest(
        NEAR_MAX_NAMES,
        (name for name in known if 2 * min(len(name), len(asked)) >= NEAR_LEAST * (len(name) + len(asked))),
        key=lambda name: len(letters.intersection(name)) / len(letters.union(name)),
    )
    return get_close_matches(asked, [name for name in likely if len(name) <= NEAR_MAX_CHARS], n=3, cutoff=NEAR_LEAST)


def _override(model: str, folded: str, backend_header: str, names: Names) -> Decision:
    """The model is "" when the request names `auto`, `default`, the class itself, or no model."""
    backend_class = names.class_of(backend_header.strip().casefold())
    if not backend_class:
        known = ", ".join(sorted(names.served)) or "none"
        message = f"X-Backend: unknown backend '{backend_header[:100]}'; known: {known}"
        raise ApiError(400, message, code="backend_not_found")
    if (alias := names.aliases.get(folded)) and alias.backend == backend_class:
        return _to_alias(alias, "override:x-backend")
    if folded in ("", DEFAULT_ALIAS) or names.class_of(folded) == backend_class:
        return Decision(backend_class, "", "override:x-backend")
    prefix, separator, rest = model.partition(":")
    if separator and rest and names.class_of(prefix.casefold()) == backend_class:
        model = rest
    return Decision(backend_class, model, "override:x-backend")


def _to_alias(alias: Alias, reason: str) -> Decision:
    return Decision(alias.backend, alias.model, reason, alias)


def _to_strong(reason: str, names: Names) -> Decision:
    backend_class = _default_class(names)
    return Decision(backend_class, _strong(backend_class, names), reason)


def _default_class(names: Names) -> str:
    """DEFAULT_BACKEND, else the class of alias `default`, else the only class with the capability chat."""
    if backend_class := names.class_of(names.default_class.casefold()):
        return backend_class
    if default := names.aliases.get(DEFAULT_ALIAS):
        return default.backend
    chatting = [name for name in names.served if "chat" in names.capable.get(name, ())]
    if len(chatting) == 1:
        return chatting[0]
    message = "Name a model: this gateway has neither an alias 'default' nor a DEFAULT_BACKEND"
    raise ApiError(400, message, param="model", code="model_required")


def _strong(backend_class: str, names: Names) -> str:
    """The class's strong model: by the setting, else the alias `default` if it is of the class, else its only model."""
    if model := names.strong.get(backend_class):
        return model
    if (default := names.aliases.get(DEFAULT_ALIAS)) and default.backend == backend_class:
        return default.model
    models = names.served.get(backend_class, ())
    if len(models) == 1:
        return next(iter(models))
    listed = ", ".join(sorted(models)[:10]) or "its models are not known yet, /readyz says why"
    raise ApiError(400, f"Name a model of backend '{backend_class}': {listed}", param="model", code="model_required")
