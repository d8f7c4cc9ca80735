"""The routing decision as a table."""

import pytest
from gateway.errors import ApiError
from gateway.routing.aliases import Alias
from gateway.routing.policy import (
    Decision,
    Facts,
    Names,
    decide,
    decide_by_policy,
    decide_embedder,
    decide_in_class,
    worth_counting,
)
from gateway.routing.request_type import is_coding
from gateway.routing.settings import RoutingSettings

DEFAULT, FAST = Alias("llamacpp", "smol"), Alias("mlx", "tiny")
ALIASES = {"default": DEFAULT, "fast": FAST}
CHAT, EMBED = frozenset({"chat"}), frozenset({"embeddings"})
SERVED = {"llamacpp": ("smol",), "mlx": ("tiny", "big:4b", "tagged:latest"), "embed": ("minilm", "smol"), "empty": ()}
CAPABLE = {"llamacpp": CHAT, "mlx": CHAT, "embed": EMBED, "empty": CHAT}
NAMES = Names(ALIASES, SERVED, CAPABLE, synonyms={"apple": "mlx"}, strong={"empty": "set"})


@pytest.mark.parametrize(
    ("model", "header", "expected"),
    [
        ("default", "", Decision("llamacpp", "smol", "alias:model", DEFAULT)),
        ("FAST", "", Decision("mlx", "tiny", "alias:model", FAST)),
        ("smol", "", Decision("llamacpp", "smol", "pinned:model")),
        ("minilm", "", Decision("embed", "minilm", "pinned:model")),
        ("tagged", "", Decision("mlx", "tagged:latest", "pinned:model")),
        ("big:4b", "", Decision("mlx", "big:4b", "pinned:model")),
        ("mlx:big:4b", "", Decision("mlx", "big:4b", "pinned:model")),
        ("Apple:big:4b", "", Decision("mlx", "big:4b", "pinned:model")),
        ("mlx:not-served-yet", "", Decision("mlx", "not-served-yet", "pinned:model")),
        ("llamacpp", "", Decision("llamacpp", "smol", "pinned:model")),
        ("llamacpp-default", "", Decision("llamacpp", "smol", "pinned:model")),
        ("empty", "", Decision("empty", "set", "pinned:model")),
        ("auto", "llamacpp", Decision("llamacpp", "smol", "override:x-backend")),
        ("", "empty", Decision("empty", "set", "override:x-backend")),
        ("llamacpp", "llamacpp", Decision("llamacpp", "smol", "override:x-backend")),
        ("Empty-default", "empty", Decision("empty", "set", "override:x-backend")),
        ("default", "empty", Decision("empty", "set", "override:x-backend")),
        ("mlx:", "mlx", Decision("mlx", "mlx:", "override:x-backend")),
        ("fast", "mlx", Decision("mlx", "tiny", "override:x-backend", FAST)),
        ("fast", "apple", Decision("mlx", "tiny", "override:x-backend", FAST)),
        ("fast", "llamacpp", Decision("llamacpp", "fast", "override:x-backend")),
        ("mlx:big:4b", "MLX", Decision("mlx", "big:4b", "override:x-backend")),
        ("anything", "mlx", Decision("mlx", "anything", "override:x-backend")),
        ("", "", None),
        ("auto", "", None),
        ("AUTO", "", None),
    ],
)
def test_first_matching_rule_decides(model: str, header: str, expected: Decision | None) -> None:
    assert decide(model, header, "chat", NAMES) == expected


@pytest.mark.parametrize(
    ("model", "header", "status", "code", "says"),
    [
        ("smoll", "", 404, "model_not_found", "did you mean smol"),
        ("zzz", "", 404, "model_not_found", "such as default, fast (the models of empty are not known yet;"),
        ("nowhere:smol", "", 404, "model_not_found", ""),
        ("default", "gpu", 400, "backend_not_found", "known: embed, empty, llamacpp, mlx"),
        ("mlx", "", 400, "model_required", "big:4b, tagged:latest, tiny"),
    ],
)
def test_refusals_name_what_there_is(model: str, header: str, status: int, code: str, says: str) -> None:
    with pytest.raises(ApiError) as caught:
        decide(model, header, "chat", NAMES)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert says in caught.value.message


def test_a_class_that_told_of_no_models_is_named_beside_an_unknown_one() -> None:
    silent = Names({}, {"ollama": (), "gpu_heavy": ()}, {"ollama": CHAT, "gpu_heavy": frozenset({"images"})})
    with pytest.raises(ApiError) as caught:
        decide("qwen2.5:7b", "", "chat", silent)
    assert "(the models of ollama are not known yet; /readyz says why)" in caught.value.message
    with pytest.raises(ApiError, match="its models are not known yet, /readyz says why"):
        decide("ollama", "", "chat", silent)


ON = RoutingSettings(router_enable_policy=True, router_enable_request_type=True, router_long_context_chars=100)
TOOLS, LONG, SHORT = Facts(has_tools=True), Facts(chars=100), Facts(chars=99)
CODE = Facts(request_type="coding")
EMBEDDER = Alias("embed", "x")
BY_FAST = Decision("mlx", "tiny", "policy:fast->alias:fast", FAST)
ONE_CLASS = Names({}, {"llamacpp": ("smol",)}, CAPABLE)
CODER, LONG_ALIAS, LONG_PLAIN = Alias("mlx", "coder"), Alias("mlx", "long", context=50), Alias("mlx", "long")
BY_CODER = Decision("mlx", "coder", "policy:coding->alias:coder", CODER)
BY_LONG = Decision("mlx", "long", "policy:long_context->alias:long", LONG_ALIAS)
NO_TOOLS = Alias("llamacpp", "smol", tools=False)
STRONG = Names({}, SERVED, CAPABLE, strong={"llamacpp": "huge"}, fast={"llamacpp": "quick"}, default_class="llamacpp")
MLX = Names({}, SERVED, CAPABLE, strong={"llamacpp": "huge", "mlx": "deep"}, default_class="llamacpp")


def having(**aliases: Alias) -> Names:
    return Names(aliases, SERVED, CAPABLE, strong={"llamacpp": "huge"}, default_class="llamacpp")


@pytest.mark.parametrize(
    ("facts", "rules", "names", "expected"),
    [
        (TOOLS, RoutingSettings(), NAMES, Decision("llamacpp", "smol", "direct:model", DEFAULT)),
        (SHORT, RoutingSettings(), STRONG, Decision("llamacpp", "huge", "direct:model")),
        (TOOLS, ON, NAMES, Decision("llamacpp", "smol", "policy:tools->alias:default", DEFAULT)),
        (TOOLS, ON, having(default=NO_TOOLS, coder=CODER), BY_CODER._replace(reason="policy:tools->alias:coder")),
        (TOOLS, ON, having(default=NO_TOOLS), Decision("llamacpp", "huge", "policy:tools->strong")),
        (LONG, ON, having(long=LONG_PLAIN), BY_LONG._replace(alias=LONG_PLAIN)),
        # A context of 50 tokens is 200 characters.
        (Facts(chars=199), ON, having(long=LONG_ALIAS, fast=FAST), BY_FAST),
        (Facts(chars=200), ON, having(long=LONG_ALIAS), BY_LONG),
        # What was counted goes before what is estimated.
        (Facts(chars=199, tokens=50), ON, having(long=LONG_ALIAS), BY_LONG),
        (Facts(chars=900, tokens=49), ON, having(long=LONG_ALIAS, fast=FAST), BY_FAST),
        (LONG, ON, MLX, Decision("mlx", "deep", "policy:long_context->mlx")),
        (LONG, ON, ONE_CLASS, Decision("llamacpp", "smol", "policy:long_context->strong")),
        (CODE, ON, having(coder=CODER), BY_CODER),
        (CODE, ON, STRONG, Decision("llamacpp", "huge", "policy:coding->strong")),
        (CODE, ON.model_copy(update={"router_enable_request_type": False}), NAMES, BY_FAST),
        (SHORT, ON, NAMES, BY_FAST),
        (SHORT, ON, STRONG, Decision("llamacpp", "quick", "policy:fast")),
        (SHORT, ON, having(), Decision("llamacpp", "huge", "policy:fast")),
    ],
)
def test_policy_decides_where_nothing_is_named(
    facts: Facts, rules: RoutingSettings, names: Names, expected: Decision
) -> None:
    assert decide_by_policy(facts, names, rules) == expected


WIDE = Alias("mlx", "long", context=8_192)
SURE, UNSURE = Facts(size=8_192 - 1_024 - 1), Facts(size=8_192 - 1_024)


@pytest.mark.parametrize(
    ("facts", "rules", "long", "expected"),
    [
        (UNSURE, ON, WIDE, WIDE),
        (Facts(size=1_000_000), ON, WIDE, WIDE),
        (SURE, ON, WIDE, None),
        (UNSURE._replace(has_tools=True), ON, WIDE, None),
        (UNSURE, RoutingSettings(), WIDE, None),
        (UNSURE, ON, Alias("mlx", "long"), None),
    ],
)
def test_tokens_are_counted_only_where_they_can_decide(
    facts: Facts, rules: RoutingSettings, long: Alias, expected: Alias | None
) -> None:
    assert worth_counting(facts, having(long=long), rules) == expected


def test_no_tokens_are_counted_without_an_alias_to_hold_them() -> None:
    assert worth_counting(UNSURE, having(default=WIDE), ON) is None


def test_no_default_asks_for_a_model() -> None:
    with pytest.raises(ApiError) as caught:
        decide_by_policy(Facts(), Names({}, SERVED, CAPABLE), RoutingSettings())
    assert caught.value.code == "model_required"
    assert "neither an alias 'default' nor a DEFAULT_BACKEND" in caught.value.message


def test_a_class_of_many_models_stands_for_that_of_the_default() -> None:
    many = Names({"default": Alias("mlx", "big:4b")}, SERVED, CAPABLE)
    assert decide("mlx", "", "chat", many) == Decision("mlx", "big:4b", "pinned:model")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (Names({}, SERVED, CAPABLE, embedder=("embed", "minilm")), Decision("embed", "minilm", "direct:model")),
        (Names({}, {"e": ("one",)}, {"e": EMBED}), Decision("e", "one", "direct:model")),
        (Names({"default": EMBEDDER}, SERVED, CAPABLE), Decision("embed", "x", "direct:model", EMBEDDER)),
        (Names(ALIASES, SERVED, CAPABLE, embedder=("", "smol")), Decision("embed", "smol", "direct:model")),
    ],
)
def test_default_embedder(names: Names, expected: Decision) -> None:
    assert decide_embedder(names) == expected


@pytest.mark.parametrize(
    "names", [Names({}, {"a": ()}, {"a": CHAT}), Names({}, SERVED, CAPABLE, embedder=("gone", ""))]
)
def test_no_default_embedder_asks_for_a_model(names: Names) -> None:
    with pytest.raises(ApiError) as caught:
        decide_embedder(names)
    assert caught.value.code == "model_required"


IMAGES = Names(
    {"art": Alias("gpu", "sdxl"), "chatty": DEFAULT},
    {"gpu": ("sdxl",), "gpu2": (), "llamacpp": ("smol",)},
    {"gpu": frozenset({"images"}), "gpu2": frozenset({"images"}), "llamacpp": CHAT},
    synonyms={"apple": "gpu"},
)


@pytest.mark.parametrize(
    ("model", "header", "expected"),
    [
        ("", "", Decision("usual", "", "direct:model")),
        ("auto", "", Decision("usual", "", "direct:model")),
        ("whatever", "", Decision("usual", "whatever", "direct:model")),
        ("chatty", "", Decision("usual", "chatty", "direct:model")),
        ("smol", "", Decision("usual", "smol", "direct:model")),
        ("default", "", Decision("usual", "", "direct:model")),
        ("llamacpp", "", Decision("usual", "llamacpp", "direct:model")),
        ("llamacpp:smol", "", Decision("usual", "llamacpp:smol", "direct:model")),
        ("Art", "", Decision("gpu", "sdxl", "alias:model", Alias("gpu", "sdxl"))),
        ("gpu2:x:y", "", Decision("gpu2", "x:y", "pinned:model")),
        ("gpu2", "", Decision("gpu2", "", "pinned:model")),
        ("sdxl", "", Decision("gpu", "sdxl", "pinned:model")),
        ("", "gpu2", Decision("gpu2", "", "override:x-backend")),
        ("art", "gpu", Decision("gpu", "sdxl", "override:x-backend", Alias("gpu", "sdxl"))),
        ("GPU:m:1", "gpu", Decision("gpu", "m:1", "override:x-backend")),
        ("m:1", "gpu", Decision("gpu", "m:1", "override:x-backend")),
        ("default", "gpu", Decision("gpu", "", "override:x-backend")),
        ("auto", "gpu", Decision("gpu", "", "override:x-backend")),
        ("Apple", "gpu", Decision("gpu", "", "override:x-backend")),
    ],
)
def test_requests_of_a_kind_with_a_class_of_its_own(model: str, header: str, expected: Decision) -> None:
    """The model may stay open there; beside `X-Backend` names mean what they mean for chats."""
    assert decide_in_class(model, header, "images", "usual", IMAGES) == expected


@pytest.mark.parametrize(
    ("header", "text", "coding"),
    [
        ("coding", "hello", True),
        ("CODE", "hello", True),
        ("dev", "", True),
        ("chat", "```def f(): pass```", False),
        ("general", "Traceback", False),
        ("", "```\nx\n```", True),
        ("", "I get a Traceback (most recent call last)", True),
        ("", "panic: runtime error", True),
        ("", "what does utils.py do?", True),
        ("", "def f(x):\n  return x", True),
        ("", "for (i = 0; i < 3; i++) {", True),
        ("", "my python script fails", True),
        ("", "fix the docker build", True),
        ("", "Tell me a story about a snake.", False),
        ("", "Python snakes are large", False),
        ("", "Please fix dinner", False),
        ("", "For whom the bell tolls (a novel)", False),
        ("unknown", "Good morning", False),
    ],
)
def test_request_type(header: str, text: str, coding: bool) -> None:
    assert is_coding(header, text) is coding
