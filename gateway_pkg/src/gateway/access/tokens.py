"""The authenticator: bearer tokens, client addresses, and what a token's policy allows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import translate
from functools import partial
from hashlib import sha256
from types import MappingProxyType
from typing import Any

from starlette.types import Scope

from gateway.access.addresses import AddressList, Network, client_address
from gateway.access.callers import shown
from gateway.access.limits import SlidingWindow
from gateway.access.policies import UNRESTRICTED, PolicyBook, TokenPolicy
from gateway.access.usage import TokenUsage
from gateway.errors import ApiError, retry_after
from gateway.routing.policy import AUTO, DEFAULT_ALIAS, Decision, Names

CHALLENGE = ((b"www-authenticate", b"Bearer"),)
# Fields that name further models for a request: LiteLLM's and OpenRouter's.
OTHER_MODELS = frozenset({"fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "models"})

Headers = tuple[tuple[bytes, bytes], ...]


class Caller:
    """A known client, with one token, or with several whose policies have the same `name`.

    `key` identifies the caller's stored data and counts, `name` is its name in logs and metrics; see `callers`.
    `admit` can refuse a request only if `is_limited`. `now` is in seconds of time.perf_counter, as `Exchange.started`.
    """

    __slots__ = ("_models", "_usage", "addresses", "is_limited", "key", "name", "policy", "spend", "window")

    def __init__(self, key: str, policy: TokenPolicy, addresses: AddressList | None, usage: TokenUsage) -> None:
        self.key = key
        self.name = shown(key)
        self.policy = policy
        self.addresses = AddressList(policy.ip_allowlist) if policy.ip_allowlist else addresses
        self.window = SlidingWindow(policy.requests_per_minute) if policy.requests_per_minute else None
        self.is_limited = self.window is not None or policy.tokens_per_day is not None
        # Shell-style patterns; case does not matter, as with aliases.
        patterns = "|".join(map(translate, policy.models_allowlist or ()))
        self._models = re.compile(patterns, re.IGNORECASE) if patterns else None
        self._usage = usage
        # Counts tokens that a request has used. The answer is never cut: the next request is refused.
        self.spend = partial(usage.spend, key)

    def admit(self, now: float, *, uses_tokens: bool = True) -> None:
        """Counts a request; raises ApiError 429 beyond the requests a minute, or when the day's tokens are used.

        Only admitted requests count, so a client that keeps asking still gets its requests a minute. A request that
        reaches no model (`uses_tokens` False) passes when the day's tokens are used.
        """
        quota = self.policy.tokens_per_day
        if uses_tokens and quota is not None and self.tokens_today() >= quota:
            message = f"This token has used its {quota} tokens of today (tokens_per_day); try again after 00:00 UTC"
            headers = (*retry_after(self._usage.day_ends_in()), *self.headers(now))
            raise ApiError(429, message, code="token_quota_exceeded", headers=headers)
        if self.window is not None and (wait := self.window.take(now)):
            seconds = math.ceil(wait)
            made = f"its {self.window.limit} requests of the last minute (requests_per_minute)"
            message = f"This token has made {made}; try again in {seconds} s"
            headers = (*retry_after(seconds), *self.headers(now))
            raise ApiError(429, message, code="rate_limit_exceeded", headers=headers)

    def take_over(self, before: Caller | None) -> None:
        """Keeps the requests of the last minute over a change of policy."""
        if before is not None and before.window is not None and self.window is not None:
            before.window.limit = self.window.limit
            self.window = before.window

    def tokens_today(self) -> int:
        return self._usage.today(self.key)

    def headers(self, now: float) -> Headers:
        """OpenAI's `x-ratelimit-…` headers for this token's limits."""
        if not self.is_limited:
            return ()
        found: list[tuple[bytes, bytes]] = []
        if self.window is not None:
            reset = math.ceil(self.window.resets_in(now))
            found += _limit_headers(b"requests", self.window.limit, self.window.used(now), reset)
        if self.policy.tokens_per_day is not None:
            used = self.tokens_today()
            found += _limit_headers(b"tokens", self.policy.tokens_per_day, used, self._usage.day_ends_in())
        return tuple(found)

    def check_model(
        self, asked: str, decision: Decision, names: Names, request: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Raises ApiError 403 unless `may_use`, and for further models in the request; `asked` is the named model."""
        if self._models is None:
            return
        for where, fields in (("", request), ("extra_body.", request.get("extra_body"))):
            for name, value in fields.items() if isinstance(fields, Mapping) else ():
                if value and (name.casefold() in OTHER_MODELS or (where and name.casefold() == "model")):
                    param = where + name
                    message = f"This token is limited to some models, so only 'model' may name one; leave out '{param}'"
                    raise ApiError(403, message, param=param, code="model_not_allowed")
        if not self.may_use(asked, decision, names):
            advice = "ask the operator to add it to the token's models_allowlist"
            message = f"This token may not use the model '{asked[:200] or AUTO}'; {advice}"
            raise ApiError(403, message, param="model", code="model_not_allowed")

    def may_use(self, asked: str, decision: Decision, names: Names) -> bool:
        """Whether models_allowlist has what `asked` resolved to: `<class>:<model>`, the alias, or the model.

        A bare model name counts only when the class is known to serve it: some servers accept any name for their only
        model.
        """
        if self._models is None:
            return True
        meant = [f"{decision.backend_class}:{decision.model}"]
        if decision.alias is not None:
            meant += [decision.model, _alias_name(asked, decision.reason)]
        elif decision.model in names.served.get(decision.backend_class, ()):
            meant.append(decision.model)
        return any(map(self._models.fullmatch, meant))

    def known(self, names: Names) -> Names:
        """The models and aliases that models_allowlist has; a class without any of them is left out."""
        if self._models is None:
            return names
        served = {
            backend_class: [
                model for model in models if self.may_use(model, Decision(backend_class, model, "pinned:model"), names)
            ]
            for backend_class, models in names.served.items()
        }
        return replace(
            names,
            served={name: models for name, models in served.items() if models or not names.served[name]},
            aliases={
                name: alias
                for name, alias in names.aliases.items()
                if self.may_use(name, Decision(alias.backend, alias.model, "alias:model", alias), names)
            },
        )

    def check_admin(self) -> None:
        """Raises ApiError 403 unless the token's policy says `admin`."""
        if not self.policy.admin:
            message = "This route needs an admin token; ask the operator for 'admin': true in the token's policy"
            raise ApiError(403, message, code="admin_required")


# Headers with a token, and what comes before it: OpenAI's, Anthropic's, Azure's. The first good token counts.
CREDENTIALS = ((b"authorization", b"bearer "), (b"x-api-key", b""), (b"api-key", b""))


class Authenticator:
    """Checks tokens and addresses.

    It looks up a token by its sha256, and a header that it accepted before by Python's own keyed hash: the time of
    either look-up tells nothing about a token's characters. It keeps nothing of a refused token.
    """

    def __init__(
        self,
        tokens: Iterable[str],
        networks: tuple[Network, ...] = (),
        *,
        book: PolicyBook | None = None,
        proxies: tuple[Network, ...] = (),
        usage: TokenUsage | None = None,
    ) -> None:
        self._digests = [sha256(token.encode()).digest() for token in tokens]
        self._addresses = AddressList(networks) if networks else None
        self._proxies = AddressList(proxies) if proxies else None
        self._usage = usage or TokenUsage()
        self._callers: dict[bytes, Caller] = {}
        self._malformed: frozenset[bytes] = frozenset()
        self._accepted: dict[bytes | None, Caller] = {}
        self._accepted_keys: dict[bytes | None, Caller] = {}
        self.replace(book or PolicyBook())

    def replace(self, book: PolicyBook) -> None:
        """Puts new policies in force. A caller that keeps its key keeps its usage; running ones keep their policy."""
        before = {caller.key: caller for caller in self.callers()}
        made: dict[str, Caller] = {}
        self._callers = {}
        self._malformed = book.malformed
        for digest in self._digests:
            if digest in book.malformed:
                continue
            policy = book.policies.get(digest, UNRESTRICTED)
            key = policy.name or digest.hex()
            if key not in made:
                made[key] = Caller(key, policy, self._addresses, self._usage)
                made[key].take_over(before.get(key))
            self._callers[digest] = made[key]
        self._usage.windows = {key: caller.window for key, caller in made.items() if caller.window is not None}
        self._accepted.clear()
        self._accepted_keys.clear()

    def callers(self) -> list[Caller]:
        """Every caller once, ordered by key."""
        return sorted(set(self._callers.values()), key=lambda caller: caller.key)

    def check_address(self, scope: Scope, caller: Caller | None = None) -> None:
        """Raises ApiError 403 when an allowlist, the caller's or else IP_ALLOWLIST, lacks the client's address."""
        addresses = caller.addresses if caller is not None else self._addresses
        if addresses is not None and not addresses.allows(self.client_address(scope)):
            setting = "IP_ALLOWLIST" if addresses is self._addresses else "the token's ip_allowlist"
            message = f"Client IP not allowed: ask the operator to add your address to {setting}"
            raise ApiError(403, message, code="ip_not_allowed")

    def identify(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Caller:
        """The caller of the first good token in `Authorization: Bearer <token>`, `x-api-key`, `api-key`.

        Raises:
            ApiError: 401 without a known token; 403 when the token's policy is malformed, or the client's address is
                not in the policy's ip_allowlist (without one: in IP_ALLOWLIST).
        """
        caller = self._accepted.get(headers.get(b"authorization"))
        if caller is None:
            caller = self._look_up(scope, headers)
        if caller.addresses is not None:
            self.check_address(scope, caller)
        return caller

    def client_address(self, scope: Scope) -> str:
        """The client's address, also behind a trusted proxy; "" for a client without an address."""
        client = scope["client"]
        if client is None or self._proxies is None:
            return client[0] if client else ""
        forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        return client_address(client[0], forwarded, self._proxies)

    def _look_up(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Caller:
        refusal: ApiError | None = None
        for name, scheme in CREDENTIALS:
            header = headers.get(name)
            if header is None or header[: len(scheme)].lower() != scheme:
                continue
            accepted, token = self._accepted if scheme else self._accepted_keys, header[len(scheme) :]
            caller = accepted.get(header)
            if caller is not None:
                return caller
            digest = sha256(token.strip()).digest()
            caller = self._callers.get(digest)
            if caller is not None and digest not in self._malformed:
                if len(token) == len(token.strip()):  # else spaces would make ever new headers of one token
                    accepted[header] = caller
                return caller
            refusal = refusal or self._refusal(scope, digest)
        if refusal is not None:
            raise refusal
        self.check_address(scope)
        message = "Missing bearer token: send the header 'Authorization: Bearer <token>'"
        raise ApiError(401, message, code="missing_token", headers=CHALLENGE)

    def _refusal(self, scope: Scope, digest: bytes) -> ApiError:
        """Why the token of this hash is not good; raises ApiError 403 for the address of an unknown one."""
        if digest in self._malformed:
            why = "its policy is malformed; the gateway's log says why"
            return ApiError(403, f"Token {shown(digest.hex())} is refused because {why}", code="token_policy_malformed")
        self.check_address(scope)
        message = "Invalid bearer token: the gateway does not know this token; ask its operator for one"
        return ApiError(401, message, code="invalid_token", headers=CHALLENGE)


def _alias_name(asked: str, reason: str) -> str:
    """The name of a decision's alias: the routing policy's, the request's, or the default."""
    _, chosen, name = reason.partition("->alias:")
    if chosen:
        return name
    return asked if asked.casefold() not in ("", AUTO) else DEFAULT_ALIAS


def _limit_headers(kind: bytes, limit: int, used: int, reset: int) -> Headers:
    return (
        (b"x-ratelimit-limit-" + kind, b"%d" % limit),
        (b"x-ratelimit-remaining-" + kind, b"%d" % max(0, limit - used)),
        (b"x-ratelimit-reset-" + kind, _duration(reset)),
    )


def _duration(seconds: int) -> bytes:
    """As OpenAI writes it: `12s`, `6m0s`, `5h0m3s`."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"
    return text.encode()
