"""Where a route of OpenAI's is on a backend, whether its base_url ends in /v1 or not."""

from __future__ import annotations

VERSION = "/v1"


def below(prefix: bytes, path: str) -> str:
    """What follows `prefix`, the path of a base_url, so that a `path` that begins with /v1 is on that backend."""
    return path.removeprefix(VERSION) if prefix.endswith(VERSION.encode()) and path.startswith("/v1/") else path
