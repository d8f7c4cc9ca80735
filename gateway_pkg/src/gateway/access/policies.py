"""Token policies: what each token may do, read from a file or a setting and checked before use."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from hashlib import sha256
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from gateway.access.addresses import Networks, split
from gateway.access.callers import SHOWN_HEX, is_hash, shown
from gateway.access.settings import AccessSettings
from gateway.config.files import parse_json, read_text
from gateway.errors import Refusal

log = logging.getLogger(__name__)

HINT = "correct GATEWAY_TOKEN_POLICIES_PATH, or start from the shipped files/token_policies.json"
_HASHED = "sha256:"


Names = Annotated[tuple[str, ...], BeforeValidator(split)]


class TokenPolicy(BaseModel):
    """One token's policy. For a key that is None the gateway's settings count. docs/policies.md explains each key.

    The keys OF_FEATURES are only checked here; the features that declare them enforce them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]*$", max_length=64)
    admin: bool = False
    models_allowlist: Names | None = None
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_day: int | None = Field(None, ge=1)
    priority: int = Field(0, ge=-1000, le=1000)
    max_request_bytes: int | None = Field(None, ge=1)
    ip_allowlist: Networks | None = None
    memory_namespace: str | None = Field(None, min_length=1, max_length=200)
    tools_allowlist: Names | None = None
    tools_allow_shell: bool | None = None
    tools_allow_fs: bool | None = None
    tools_allow_http_fetch: bool | None = None
    tools_allow_git: bool | None = None
    tools_allow_system_info: bool | None = None
    tools_allow_models_refresh: bool | None = None
    tools_rate_limit_rps: float | None = Field(None, ge=0)
    tools_rate_limit_burst: int | None = Field(None, ge=0)

    def without_effect(self, unenforced: frozenset[str]) -> list[str]:
        """Its keys among these."""
        return sorted(key for key in self.model_fields_set & unenforced if getattr(self, key) is not None)

    @field_validator("name")
    @classmethod
    def _is_no_hash(cls, value: str | None) -> str | None:
        if value is not None and (is_hash(value) or re.fullmatch(f"[0-9a-f]{{{SHOWN_HEX}}}", value)):
            raise ValueError(f"{SHOWN_HEX} or 64 hex digits stand for a token without a name; choose another")
        return value

    @field_validator("ip_allowlist", "models_allowlist")
    @classmethod
    def _is_not_empty(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if value == ():
            raise ValueError("is empty; leave the key out to restrict nothing")
        return value


OF_FEATURES = frozenset(key for key in TokenPolicy.model_fields if key.startswith(("tools_", "memory_")))
# A token without a policy is the operator's own.
UNRESTRICTED = TokenPolicy.model_validate({"admin": True})


@dataclass(frozen=True)
class PolicyBook:
    """Policies by the sha256 of their token.

    `malformed` holds the tokens with a malformed policy: the gateway refuses them.
    """

    policies: Mapping[bytes, TokenPolicy] = field(default_factory=dict)
    malformed: frozenset[bytes] = frozenset()


def load_policies(settings: AccessSettings, unenforced: frozenset[str] = OF_FEATURES) -> PolicyBook:
    """The policies of GATEWAY_TOKEN_POLICIES_JSON and of the file GATEWAY_TOKEN_POLICIES_PATH, together.

    Warns of keys that have no effect, because no feature enforces them: `unenforced`.

    Raises:
        Refusal: a source is not a JSON object; with GATEWAY_TOKEN_POLICIES_STRICT also for a malformed policy, and for
            a policy of an unknown token. No line shows a token.
    """
    reader = _Reader({sha256(token.encode()).digest() for token in settings.tokens()})
    if text := settings.gateway_token_policies_json.get_secret_value().strip():
        reader.read(text, "GATEWAY_TOKEN_POLICIES_JSON")
    path = settings.gateway_token_policies_path
    if path is not None:
        reader.read(read_text(path, "token policies file", HINT), str(path))
    if reader.problems and settings.gateway_token_policies_strict:
        raise Refusal(*reader.problems)
    for problem in reader.problems:
        log.warning("%s", problem)
    for digest in sorted(reader.malformed):
        log.warning("token %s is refused until its policy is corrected", shown(digest.hex()))
    for digest, policy in reader.policies.items():
        if keys := policy.without_effect(unenforced):
            name = policy.name or shown(digest.hex())
            log.warning(
                "policy of token %s: %s: without effect, nothing in this release enforces it", name, ", ".join(keys)
            )
    return PolicyBook(reader.policies, frozenset(reader.malformed))


class _Reader:
    """Collects the policies and problems of all sources."""

    def __init__(self, accepted: set[bytes]) -> None:
        self.policies: dict[bytes, TokenPolicy] = {}
        self.malformed: set[bytes] = set()
        self.problems: list[str] = []
        self._accepted = accepted

    def read(self, text: str, source: str) -> None:
        for key, value in _pairs(text, source):
            digest = _digest(key)
            if digest is None:
                self.problems.append(f"{source}: a key that begins with '{_HASHED}' must go on with 64 hex digits")
                continue
            token = shown(digest.hex())
            self.problems += [f"{source}: policy of token {token}: {words}" for words in self._take(digest, value)]

    def _take(self, digest: bytes, value: object) -> Iterator[str]:
        """Keeps the policy, or yields its problems."""
        if digest not in self._accepted:
            yield "the gateway accepts no such token; correct the key, or remove the policy"
            return
        policy = None
        if digest in self.policies or digest in self.malformed:
            yield "is there twice; leave one"
        elif not isinstance(value, _Object):
            yield "must be an object"
        elif twice := value.twice():
            yield from (f"{_safe(key)}: is there twice; leave one" for key in twice)
        else:
            try:
                policy = TokenPolicy.model_validate(value)
            except ValidationError as error:
                yield from _words(error)
        if policy is not None and self._differs(policy):
            yield f"name: another token is called {policy.name} and has another policy; make them equal, or rename one"
            policy = None
        if policy is None:
            self.policies.pop(digest, None)
            self.malformed.add(digest)
        else:
            self.policies[digest] = policy

    def _differs(self, policy: TokenPolicy) -> bool:
        return policy.name is not None and any(
            other.name == policy.name and other != policy for other in self.policies.values()
        )


class _Object(dict[str, Any]):
    """A JSON object that remembers duplicate keys, which a dict would drop in silence."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs

    def twice(self) -> list[str]:
        return [key for key, count in Counter(key for key, _ in self.pairs).items() if count > 1]


def _pairs(text: str, source: str) -> list[tuple[str, Any]]:
    content = parse_json(text, source, _Object)
    if not isinstance(content, _Object):
        raise Refusal(f"{source}: must be one JSON object, from token to policy; see docs/policies.md")
    return content.pairs


def _digest(key: str) -> bytes | None:
    """The sha256 of a key: of its token, or as written; None when the written one is malformed."""
    if not key.startswith(_HASHED):
        return sha256(key.encode("utf-8", "surrogatepass")).digest()
    digits = key.removeprefix(_HASHED)
    return bytes.fromhex(digits) if re.fullmatch(r"[0-9A-Fa-f]{64}", digits) else None


def _words(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        key = str(problem["loc"][0])
        words = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            near = " or ".join(f"'{name}'" for name in get_close_matches(key, TokenPolicy.model_fields, n=2))
            words = f"unknown key; did you mean {near}?" if near else "unknown key; remove it"
        yield f"{_safe(key)}: {words}"


def _safe(key: str) -> str:
    """The key, unless it might be a token at a wrong level."""
    is_known = key in TokenPolicy.model_fields or get_close_matches(key, TokenPolicy.model_fields, n=1)
    return key if is_known or re.fullmatch(r"[a-z_]{1,32}", key) else "a key that is not shown"
