"""Token policies: what each token may do, from a file or a setting, checked before anything of them is used."""

from __future__ import annotations

import json
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
from gateway.access.callers import SHOWN_HEX, is_hash
from gateway.access.callers import shown as shown_name
from gateway.access.settings import AccessSettings
from gateway.config.files import read_text
from gateway.errors import Refusal

log = logging.getLogger(__name__)

HINT = "correct GATEWAY_TOKEN_POLICIES_PATH, or start from the shipped files/token_policies.json"
_HASHED = "sha256:"


Names = Annotated[tuple[str, ...], BeforeValidator(split)]


class TokenPolicy(BaseModel):
    """One token's policy; what is None is as the gateway's settings say for all. docs/policies.md explains each key.

    The keys OF_FEATURES are checked here, and enforced by the features that declare them.
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
# A token that no policy mentions is its operator's own.
UNRESTRICTED = TokenPolicy.model_validate({"admin": True})


@dataclass(frozen=True)
class PolicyBook:
    """Policies by the sha256 of their token.

    `malformed` holds the tokens whose policy could not be read: nobody knows what they may do, so they may nothing.
    """

    policies: Mapping[bytes, TokenPolicy] = field(default_factory=dict)
    malformed: frozenset[bytes] = frozenset()


def shown(digest: bytes) -> str:
    """How a token without a name is called; never the token itself."""
    return shown_name(digest.hex())


def load_policies(settings: AccessSettings, unenforced: frozenset[str] = OF_FEATURES) -> PolicyBook:
    """The policies of GATEWAY_TOKEN_POLICIES_JSON and of the file GATEWAY_TOKEN_POLICIES_PATH, together.

    Warns of keys that have no effect, because no feature enforces them: `unenforced`.

    Raises:
        Refusal: a source is no JSON object; with GATEWAY_TOKEN_POLICIES_STRICT also any policy that is not as it must
            be, and one for a token that is not accepted. No line shows a token.
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
        log.warning("token %s is refused until its policy is corrected", shown(digest))
    for digest, policy in reader.policies.items():
        if keys := policy.without_effect(unenforced):
            name = policy.name or shown(digest)
            log.warning(
                "policy of token %s: %s: without effect, nothing in this release enforces it", name, ", ".join(keys)
            )
    return PolicyBook(reader.policies, frozenset(reader.malformed))


class _Reader:
    """Collects policies and problems over the sources."""

    def __init__(self, accepted: set[bytes]) -> None:
        self.policies: dict[bytes, TokenPolicy] = {}
        self.malformed: set[bytes] = set()
        self.problems: list[str] = []
        self._accepted = accepted

    def read(self, text: str, source: str) -> None:
        for key, value in _pairs(text, source):
            digest = _digest(key)
            if digest is None:
                self.problems.append(f"{source}: a key begins with '{_HASHED}' and has not 64 hex digits after it")
                continue
            problems = [f"{source}: policy of token {shown(digest)}: {words}" for words in self._take(digest, value)]
            self.problems += problems

    def _take(self, digest: bytes, value: object) -> Iterator[str]:
        """Keeps the policy, or yields what is wrong with it."""
        if digest not in self._accepted:
            yield "no such token is accepted; correct the key, or remove the policy"
            return
        policy = None
        if digest in self.policies or digest in self.malformed:
            yield "stands twice; leave one"
        elif not isinstance(value, _Object):
            yield "must be an object"
        elif twice := value.twice():
            yield from (f"{_safe(key)}: stands twice; leave one" for key in twice)
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
    """A JSON object that remembers keys that stood twice, which a dict alone would drop in silence."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs

    def twice(self) -> list[str]:
        return [key for key, count in Counter(key for key, _ in self.pairs).items() if count > 1]


def _pairs(text: str, source: str) -> list[tuple[str, Any]]:
    try:
        content = json.loads(text, object_pairs_hook=_Object)
    except json.JSONDecodeError as error:
        raise Refusal(f"{source}: line {error.lineno}: not JSON: {error.msg}; correct it") from None
    except (ValueError, RecursionError):
        raise Refusal(f"{source}: not JSON: a number is too long or the nesting too deep; correct it") from None
    if not isinstance(content, _Object):
        raise Refusal(f"{source}: must be one JSON object, from token to policy; see docs/policies.md")
    return content.pairs


def _digest(key: str) -> bytes | None:
    """The sha256 that a key stands for: of the token, or as written; None for one that is written wrongly."""
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
    """The key, unless it might be a token that stands one level too deep."""
    is_known = key in TokenPolicy.model_fields or get_close_matches(key, TokenPolicy.model_fields, n=1)
    return key if is_known or re.fullmatch(r"[a-z_]{1,32}", key) else "a key that is not shown"
