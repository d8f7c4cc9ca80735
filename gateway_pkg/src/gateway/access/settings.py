"""The settings that say who may call."""

from __future__ import annotations

from pydantic import SecretStr

from gateway.access.addresses import Networks
from gateway.config.settings import OptionalPath, Section, setting
from gateway.errors import Refusal

PLACEHOLDERS = frozenset(
    {
        "change-me-in-production",
        "changeme-changeme",
        "your-token-here-123",
        "replace-me-with-a-token",
        "gateway_bearer_token",
    }
)
TOKEN_MIN_CHARS = 16
MAKE_ONE = """python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"""


class AccessSettings(Section, heading="Who may call"):
    gateway_bearer_token: SecretStr = setting(SecretStr(""), "The token that clients send, 16 or more characters.")
    gateway_bearer_tokens: SecretStr = setting(
        SecretStr(""), "Several tokens, comma-separated; replaces `GATEWAY_BEARER_TOKEN`."
    )
    gateway_token_policies_json: SecretStr = setting(
        SecretStr(""), "Token policies, a JSON object from token to policy; see docs/policies.md."
    )
    gateway_token_policies_path: OptionalPath = setting(None, "File with the token policies.")
    gateway_token_policies_strict: bool = setting(
        True, "Whether a malformed policy stops the start, and makes a reload keep the last good policies."
    )
    ip_allowlist: Networks = setting(
        (), "Comma-separated addresses and CIDRs that may call the API; empty: any client."
    )
    trust_proxy_cidrs: Networks = setting(
        (), "Comma-separated addresses and CIDRs of trusted proxies, whose `X-Forwarded-For` counts."
    )

    def tokens(self) -> tuple[str, ...]:
        """The accepted tokens. Raises Refusal, which shows no token: none is set, or one is short or a placeholder."""
        several = [part.strip() for part in self.gateway_bearer_tokens.get_secret_value().split(",") if part.strip()]
        name = "GATEWAY_BEARER_TOKENS" if several else "GATEWAY_BEARER_TOKEN"
        tokens = several or [self.gateway_bearer_token.get_secret_value().strip()]
        for token in tokens:
            if not token:
                raise Refusal(f"{name} is not set; make a token with: {MAKE_ONE}")
            if len(token) < TOKEN_MIN_CHARS or token.lower() in PLACEHOLDERS:
                short = f"{len(token)} characters long, at least {TOKEN_MIN_CHARS} are needed"
                why = "a known placeholder" if len(token) >= TOKEN_MIN_CHARS else short
                raise Refusal(f"{name} is {why}; make a token with: {MAKE_ONE}")
            if not token.isascii() or any(char.isspace() or not char.isprintable() for char in token):
                raise Refusal(f"{name} may hold only printable ASCII without spaces; make one with: {MAKE_ONE}")
        return tuple(tokens)
