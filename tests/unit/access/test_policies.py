"""Token policies as they are written, and what they allow: without a server, where every case is cheap."""

from __future__ import annotations

import json
import logging
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from gateway.access.policies import PolicyBook, TokenPolicy, load_policies
from gateway.access.settings import AccessSettings
from gateway.access.tokens import Authenticator, Caller
from gateway.app import load_settings
from gateway.errors import ApiError, Refusal
from gateway.routing.aliases import Alias
from gateway.routing.policy import Decision, Facts, Names, decide, decide_by_policy
from gateway.routing.settings import RoutingSettings
from hypothesis import given
from hypothesis import strategies as st

from tests.support.gateways import TOKEN
from tests.support.pieces import json_values

OTHER = "other-token-0123456789abcdef"
SHOWN = sha256(TOKEN.encode()).hexdigest()[:8]
DOCS = Path(__file__).parents[3] / "docs/policies.md"
EVERY_KEY = {
    "name": "automation",
    "admin": True,
    "models_allowlist": "fast, ollama:*",
    "requests_per_minute": 60,
    "tokens_per_day": 100_000,
    "priority": 5,
    "max_request_bytes": 250_000,
    "ip_allowlist": "10.10.22.0/24, ::1",
    "memory_namespace": "automation",
    "tools_allowlist": "noop,http_fetch_local",
    "tools_allow_shell": False,
    "tools_allow_fs": False,
    "tools_allow_http_fetch": True,
    "tools_allow_git": False,
    "tools_allow_system_info": False,
    "tools_allow_models_refresh": False,
    "tools_rate_limit_rps": 1,
    "tools_rate_limit_burst": 2,
}


def load(policies: Any, *, strict: bool = True, path: Path | None = None) -> PolicyBook:
    """Loads policies, given as JSON text or as what becomes it, for the two tokens that are accepted."""
    text = policies if isinstance(policies, str) else json.dumps(policies)
    return load_policies(
        load_settings(
            gateway_bearer_tokens=f"{TOKEN},{OTHER}",
            gateway_token_policies_json=text,
            gateway_token_policies_path=path,
            gateway_token_policies_strict=strict,
        )[AccessSettings]
    )


def caller(policy: dict[str, Any]) -> Caller:
    """The caller of TOKEN under this policy."""
    return identified(Authenticator([TOKEN], book=load({TOKEN: policy})), TOKEN)


def identified(authenticator: Authenticator, token: str) -> Caller:
    return authenticator.identify({"client": ("127.0.0.1", 1), "headers": []}, {b"x-api-key": token.encode()})


def test_every_key_is_taken() -> None:
    assert set(EVERY_KEY) == set(TokenPolicy.model_fields)
    [policy] = load({TOKEN: EVERY_KEY}).policies.values()
    assert policy.models_allowlist == ("fast", "ollama:*")
    assert [str(network) for network in policy.ip_allowlist or ()] == ["10.10.22.0/24", "::1/128"]


def test_keys_that_no_feature_enforces_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    idle = {key for key in EVERY_KEY if key.startswith(("tools_", "memory_"))}
    load({TOKEN: EVERY_KEY, OTHER: {"tools_allow_git": None, "priority": 1}})
    (record,) = caplog.records
    whose, keys, _ = record.getMessage().split(": ")
    assert (whose, keys.split(", ")) == ("policy of token automation", sorted(idle))
    caplog.clear()
    load({TOKEN: {"name": "bot", "priority": 1}})
    assert caplog.records == []


def test_lists_and_commas_are_the_same() -> None:
    keys = ("models_allowlist", "ip_allowlist", "tools_allowlist")
    lists = {key: str(EVERY_KEY[key]).replace(" ", "").split(",") for key in keys}
    assert load({TOKEN: EVERY_KEY | lists}) == load({TOKEN: EVERY_KEY})


def test_the_page_explains_every_key() -> None:
    text = DOCS.read_text()
    assert [key for key in TokenPolicy.model_fields if f"`{key}`" not in text] == []


def test_tokens_by_their_hash(tmp_path: Path) -> None:
    digest = sha256(TOKEN.encode()).hexdigest()
    for written in (digest, digest.upper()):
        assert load({f"sha256:{written}": {"priority": 3}}) == load({TOKEN: {"priority": 3}})


def test_file_and_setting_together(tmp_path: Path) -> None:
    path = tmp_path / "policies.json"
    path.write_text(json.dumps({OTHER: {"name": "other"}}))
    assert len(load({TOKEN: {"name": "one"}}, path=path).policies) == 2
    with pytest.raises(Refusal, match="is there twice"):
        load({OTHER: {"name": "one"}}, path=path)


@pytest.mark.parametrize(
    ("policies", "says"),
    [
        ({TOKEN: {"models_allow": ["fast"]}}, "did you mean 'models_allowlist' or 'tools_allow_fs'?"),
        ({TOKEN: {"colour": "red"}}, "colour: unknown key; remove it"),
        ({TOKEN: {OTHER: {}}}, "a key that is not shown: unknown key"),
        ({TOKEN: {"requests_per_minute": 0}}, "requests_per_minute: Input should be greater than or equal to 1"),
        ({TOKEN: {"tokens_per_day": "many"}}, "tokens_per_day: Input should be a valid integer"),
        ({TOKEN: {"max_request_bytes": 0}}, "max_request_bytes"),
        ({TOKEN: {"ip_allowlist": "10.0.0.300"}}, "ip_allowlist: '10.0.0.300' does not appear to be an IPv4 or IPv6"),
        ({TOKEN: {"ip_allowlist": [5]}}, "ip_allowlist: write addresses and CIDRs"),
        ({TOKEN: {"ip_allowlist": []}}, "ip_allowlist: is empty"),
        ({TOKEN: {"models_allowlist": ""}}, "models_allowlist: is empty"),
        ({TOKEN: {"name": "deadbeef"}}, "8 or 64 hex digits"),
        ({TOKEN: {"name": "0123456789abcdef" * 4}}, "8 or 64 hex digits"),
        ({TOKEN: {"name": "a b"}}, "name: String should match"),
        ({TOKEN: []}, "must be an object"),
        (f'{{"{TOKEN}": {{"priority": 1, "priority": 2}}}}', "priority: is there twice"),
        (f'{{"{TOKEN}": {{}}, "{TOKEN}": {{}}}}', "is there twice; leave one"),
        ({"sha256:abc": {}}, "must go on with 64 hex digits"),
        ({"unknown-token-0123456789": {}}, "the gateway accepts no such token"),
        ('{"\\ud800": {}}', "the gateway accepts no such token"),
        ({TOKEN: {"name": "a", "priority": 1}, OTHER: {"name": "a"}}, "another token is called a"),
    ],
)
def test_malformed_policies_are_refused(policies: Any, says: str) -> None:
    with pytest.raises(Refusal) as raised:
        load(policies)
    assert says in str(raised.value)
    for secret in (TOKEN, OTHER, "unknown-token"):
        assert secret not in str(raised.value)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("text", ["[", "[]", "3", '{"a": ' + "[" * 100_000, '{"a": ' + "9" * 5_000 + "}"])
def test_json_other_than_an_object_is_refused_in_any_mode(text: str, strict: bool) -> None:
    with pytest.raises(Refusal, match="GATEWAY_TOKEN_POLICIES_JSON"):
        load(text, strict=strict)


def test_lenient_mode_refuses_the_token_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        book = load({TOKEN: {"models_allow": ["fast"]}, OTHER: {"name": "other"}}, strict=False)
    assert SHOWN in caplog.text
    assert TOKEN not in caplog.text
    authenticator = Authenticator([TOKEN, OTHER], book=book)
    assert identified(authenticator, OTHER).name == "other"
    assert [one.name for one in authenticator.callers()] == ["other"]
    with pytest.raises(ApiError) as raised:
        identified(authenticator, TOKEN)
    assert (raised.value.status, raised.value.code) == (403, "token_policy_malformed")
    authenticator.replace(load({TOKEN: {"models_allowlist": ["fast"]}}))
    assert identified(authenticator, TOKEN).name == SHOWN


KEYS = st.sampled_from([*TokenPolicy.model_fields, "colour"])


@given(st.dictionaries(st.sampled_from([TOKEN, OTHER, "x", "sha256:"]), st.dictionaries(KEYS, json_values())))
def test_whatever_is_written_is_taken_or_refused(policies: dict[str, Any]) -> None:
    try:
        load(policies)
        is_good = True
    except Refusal as refusal:
        is_good = False
        assert TOKEN not in str(refusal)
    assert load(policies, strict=False).malformed == frozenset() or not is_good


def test_a_token_without_a_policy_may_do_all() -> None:
    authenticator = Authenticator([TOKEN])
    free = identified(authenticator, TOKEN)
    assert free.name == SHOWN
    assert free.policy.admin
    assert not free.is_limited
    assert free.headers(0) == ()
    assert free.may_use("x", Decision("test", "x", "pinned:model"), NAMES)
    assert not caller({}).policy.admin


NAMES = Names(
    aliases={
        "default": Alias("ollama", "strong"),
        "fast": Alias("ollama", "small"),
        "coder": Alias("mlx", "big-coder"),
    },
    served={"ollama": ("strong", "small", "tiny-small"), "mlx": ("big-coder", "small")},
    capable={"ollama": ("chat",), "mlx": ("chat",)},
)


@pytest.mark.parametrize(
    ("allowed", "asked", "header", "may"),
    [
        (["fast"], "fast", "", True),
        (["fast"], "FAST", "", True),
        (["fast"], "ollama:small", "", False),
        (["fast"], "coder", "", False),
        (["small"], "fast", "", True),
        (["small"], "ollama:small", "", True),
        (["ollama:small"], "fast", "", True),
        (["ollama:small"], "mlx:small", "", False),
        (["ollama:*"], "coder", "", False),
        (["ollama:*"], "default", "", True),
        (["*-coder"], "coder", "", True),
        (["*small"], "tiny-small", "", True),
        (["default"], "auto", "", True),
        (["default"], "", "", True),
        (["fast"], "auto", "", False),
        (["small"], "small", "mlx", True),
        (["mlx:*"], "anything", "mlx", True),
        # The name of an alias, or of another class's model, opens only what it stands for.
        (["fast"], "mlx:fast", "", False),
        (["strong"], "mlx:strong", "", False),
        (["strong"], "strong", "mlx", False),
        (["fast"], "fast", "mlx", False),
        (["fast"], "fast", "ollama", True),
        (["coder"], "coder", "ollama", False),
        (["*"], "mlx:small", "", True),
        (["smal"], "small", "", False),
        (["fast", "coder"], "coder", "", True),
    ],
)
def test_models_allowlist(allowed: list[str], asked: str, header: str, may: bool) -> None:
    decision = decide(asked, header, "chat", NAMES) or decide_by_policy(Facts(), NAMES, RoutingSettings())
    restricted = caller({"models_allowlist": allowed})
    assert restricted.may_use(asked, decision, NAMES) is may
    if may:
        restricted.check_model(asked, decision, NAMES)
    else:
        with pytest.raises(ApiError) as raised:
            restricted.check_model(asked, decision, NAMES)
        assert (raised.value.status, raised.value.code, raised.value.param) == (403, "model_not_allowed", "model")


@pytest.mark.parametrize(("has_tools", "may"), [(True, True), (False, False)])
def test_models_allowlist_where_the_policy_chooses(has_tools: bool, may: bool) -> None:
    decision = decide_by_policy(Facts(has_tools=has_tools), NAMES, RoutingSettings(router_enable_policy=True))
    assert caller({"models_allowlist": ["default"]}).may_use("auto", decision, NAMES) is may


def test_requests_a_minute() -> None:
    limited = caller({"requests_per_minute": 2})
    limited.admit(100)
    limited.admit(110)
    assert dict(limited.headers(110)) == {
        b"x-ratelimit-limit-requests": b"2",
        b"x-ratelimit-remaining-requests": b"0",
        b"x-ratelimit-reset-requests": b"1m1s",
    }
    for _ in range(3):  # what is refused does not count
        with pytest.raises(ApiError) as raised:
            limited.admit(120)
        assert (raised.value.status, raised.value.code) == (429, "rate_limit_exceeded")
        assert "requests_per_minute" in raised.value.message
        assert (b"retry-after", b"41") in raised.value.headers
    limited.admit(161)


def test_tokens_a_day() -> None:
    limited = caller({"tokens_per_day": 100})
    limited.spend(99)
    limited.admit(0)
    limited.spend(99)
    with pytest.raises(ApiError) as raised:
        limited.admit(0)
    assert (raised.value.status, raised.value.code) == (429, "token_quota_exceeded")
    headers = dict(raised.value.headers)
    assert 1 <= int(headers[b"retry-after"]) <= 86_400
    assert headers[b"x-ratelimit-remaining-tokens"] == b"0"
    limited.admit(0, uses_tokens=False)


def test_tokens_of_one_name_are_one_client() -> None:
    policy = {"name": "bot", "requests_per_minute": 2}
    authenticator = Authenticator([TOKEN, OTHER], book=load({TOKEN: policy, OTHER: policy}))
    identified(authenticator, TOKEN).admit(0)
    identified(authenticator, OTHER).admit(0)
    with pytest.raises(ApiError):
        identified(authenticator, TOKEN).admit(0)


def test_other_policies_keep_what_was_used() -> None:
    authenticator = Authenticator([TOKEN], book=load({TOKEN: {"name": "bot", "requests_per_minute": 3}}))
    before = identified(authenticator, TOKEN)
    before.admit(0)
    before.admit(0)
    before.spend(7)
    authenticator.replace(load({TOKEN: {"name": "bot", "requests_per_minute": 2}}))
    after = identified(authenticator, TOKEN)
    assert after is not before
    assert after.tokens_today() == 7
    with pytest.raises(ApiError):
        after.admit(1)
    authenticator.replace(load({TOKEN: {"name": "bot", "requests_per_minute": 4}}))
    identified(authenticator, TOKEN).admit(1)
    authenticator.replace(PolicyBook())
    assert not identified(authenticator, TOKEN).is_limited
