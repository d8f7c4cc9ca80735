"""The routing decision as a table."""

import pytest
from gateway.http.errors import ApiError
from gateway.routing.aliases import Alias
from gateway.routing.policy import Decision, Names, decide

ALIASES = {"default": Alias("llamacpp", "smol"), "fast": Alias("mlx", "tiny")}
NAMES = Names(ALIASES, {"llamacpp": ("smol",), "mlx": ("tiny", "big:4b"), "embed": ("minilm",), "empty": ()})


@pytest.mark.parametrize(
    ("model", "header", "expected"),
    [
        ("default", "", Decision("llamacpp", "smol", "alias:model")),
        ("FAST", "", Decision("mlx", "tiny", "alias:model")),
        ("", "", Decision("llamacpp", "smol", "direct:model")),
        ("auto", "", Decision("llamacpp", "smol", "direct:model")),
        ("AUTO", "", Decision("llamacpp", "smol", "direct:model")),
        ("smol", "", Decision("llamacpp", "smol", "pinned:model")),
        ("big:4b", "", Decision("mlx", "big:4b", "pinned:model")),
        ("mlx:big:4b", "", Decision("mlx", "big:4b", "pinned:model")),
        ("mlx:not-served-yet", "", Decision("mlx", "not-served-yet", "pinned:model")),
        ("llamacpp", "", Decision("llamacpp", "smol", "pinned:model")),
        ("embed", "", Decision("embed", "minilm", "pinned:model")),
        ("", "embed", Decision("embed", "minilm", "override:x-backend")),
        ("auto", "llamacpp", Decision("llamacpp", "smol", "override:x-backend")),
        ("fast", "mlx", Decision("mlx", "tiny", "override:x-backend")),
        ("mlx:big:4b", "MLX", Decision("mlx", "big:4b", "override:x-backend")),
        ("anything", "mlx", Decision("mlx", "anything", "override:x-backend")),
    ],
)
def test_first_matching_rule_decides(model: str, header: str, expected: Decision) -> None:
    assert decide(model, header, NAMES) == expected


@pytest.mark.parametrize(
    ("model", "header", "status", "code", "says"),
    [
        ("smoll", "", 404, "model_not_found", "did you mean smol"),
        ("zzz", "", 404, "model_not_found", "default, fast"),
        ("nowhere:smol", "", 404, "model_not_found", ""),
        ("default", "gpu", 400, "backend_not_found", "known: embed, empty, llamacpp, mlx"),
        ("mlx", "", 400, "model_required", "big:4b, tiny"),
        ("empty", "", 400, "model_required", "none is known yet"),
    ],
)
def test_refusals_name_what_there_is(model: str, header: str, status: int, code: str, says: str) -> None:
    with pytest.raises(ApiError) as caught:
        decide(model, header, NAMES)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert says in caught.value.message


def test_no_default_alias_asks_for_a_model() -> None:
    with pytest.raises(ApiError) as caught:
        decide("auto", "", Names({}, NAMES.served))
    assert caught.value.code == "model_required"
