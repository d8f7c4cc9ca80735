"""What the gateway knows of one wire protocol: a record. docs/add-a-protocol.md tells how one is added."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from gateway.backends.protocols.base import Adapter, Outgoing
from gateway.backends.protocols.image_request import ImageRequest, Painting
from gateway.backends.protocols.steps import Steps

T = TypeVar("T")
# A request's body in the server's words, from the request and its JSON; raises ApiError 400.
ChangeBody = Callable[[Mapping[str, Any], bytes], bytes]
Paint = Callable[[ImageRequest], Steps[Painting]]  # raises ApiError 400 for what the server cannot do
VERSION = "/v1"
# Where OpenAI's API has a capability, below a base_url that ends in /v1.
OPENAI_PATHS: Mapping[str, str] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
    "rerank": "/rerank",
    "images": "/images/generations",
    "tts": "/audio/speech",
    "transcription": "/audio/transcriptions",
    "music": "/music/generations",
}
# The name of a piece's file and nothing else: no separator, no leading dot, no character that a URL escapes.
AUDIO_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


class Listing(NamedTuple):
    """Names of models: where below the base_url, and how to read them; `read` raises AnswerError."""

    path: str
    read: Callable[[bytes], tuple[str, ...]]


class TokenCount(NamedTuple):
    """How many tokens the prompt of a chat or completion has.

    `request` is of the model, the client's request, and the path of the base_url; the path it tells is a whole one.
    `read` is of that request and its answer of status 200; raises AnswerError.
    """

    request: Callable[[str, Mapping[str, Any], bytes], Outgoing]
    read: Callable[[Mapping[str, Any], bytes], int]


class Music(NamedTuple):
    """Pieces of music, each made by one request and then fetched by the name of its file.

    `request` is of the client's request and the model, `time_limit` of the request and the least seconds, `read` of an
    answer of status 200; `file` is the name that AUDIO_FILE matches, to be asked for at `audio_path` below the root.
    `request` raises ApiError 400, `read` and `file` AnswerError.
    """

    request: Callable[[Mapping[str, Any], str], dict[str, Any]]
    time_limit: Callable[[Mapping[str, Any], float], float]
    read: Callable[[bytes], dict[str, Any]]
    file: Callable[[Mapping[str, Any]], str]
    audio_path: str


@dataclass(frozen=True, slots=True)
class Implied:
    """A backend that the URL in a setting makes, without a record: its class, or the setting that names its class."""

    url_setting: str
    capabilities: tuple[str, ...]
    limits: Mapping[str, int]
    backend_class: str = ""
    class_setting: str = ""
    probe: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WireProtocol:
    """How to speak to a kind of server. What a record leaves out is as in OpenAI's API: same paths, same bodies.

    `about` is its row in the docs, `capabilities` are those that it has requests for.
    `probe` is the path on the backend's origin that answers 200 when it is ready, for a record that names no `health`.
    `paths` are those of capabilities that differ from OpenAI's, below the base_url; a leading /v1 is not repeated.
    `chat_tokens_path` is the path below chat's own that counts the tokens of a whole chat; "" without one.
    `images_backend` is its value of IMAGES_BACKEND, and what answers call it.
    `first_byte_sec` bounds the wait for an answer instead of UPSTREAM_FIRST_BYTE_TIMEOUT_SEC.
    """

    name: str
    about: str
    capabilities: frozenset[str]
    probe: str = "/health"
    models: Listing | None = None
    loaded: Listing | None = None
    paths: Mapping[str, str] = field(default_factory=dict)
    bodies: Mapping[str, ChangeBody] = field(default_factory=dict)
    chat: Adapter | None = None
    chat_tokens_path: str = ""
    tokens: TokenCount | None = None
    paint: Paint | None = None
    images_backend: str = ""
    music: Music | None = None
    first_byte_sec: float | None = None
    implied: tuple[Implied, ...] = ()

    def __post_init__(self) -> None:
        for capability, part in (("images", self.paint), ("music", self.music)):
            if (capability in self.capabilities) != (part is not None):
                raise ValueError(f"{self.name}: {capability} needs its part, and the part its capability")

    def target(self, capability: str, prefix: bytes) -> bytes:
        """Where a capability is on a backend whose base_url has the path `prefix`."""
        return prefix + below(prefix, self.paths.get(capability, OPENAI_PATHS[capability])).encode()


def below(prefix: bytes, path: str) -> str:
    """What follows `prefix`, the path of a base_url, so that a `path` that begins with /v1 is on that backend."""
    return path.removeprefix(VERSION) if prefix.endswith(VERSION.encode()) and path.startswith("/v1/") else path


def promised(part: T | None) -> T:
    """A part that a capability promises: `WireProtocol` is checked for it when it is made."""
    if part is None:
        raise LookupError("a capability without its part")
    return part
