"""HeartMula's music server, sans I/O: one request makes one piece, which is then fetched by its file's name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from gateway.backends.protocols.base import AnswerError, json_object, quoted
from gateway.backends.protocols.wire_protocol import AUDIO_FILE, Implied, Music, WireProtocol
from gateway.errors import ApiError

USUAL_DURATION_SEC = 30.0  # the server's, where a request names none
WORDS = ("prompt", "lyrics", "style", "input")
FAILED = ("failed", "error", "cancelled")


def music_request(request: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The server's request: `input` is another name of `prompt`, a list of tags becomes comma-separated.

    `model` is "" to leave the choice to the server; every other field is forwarded as it came.
    Raises ApiError 400 where there are no words to make music of, or two different ones.
    """
    if not any(request.get(name) for name in WORDS):
        raise ApiError(400, "Say what to play: one of prompt, lyrics, style or input", param="prompt", code="missing")
    wanted = {name: value for name, value in request.items() if name not in ("input", "model") and value is not None}
    prompt, other = request.get("prompt"), request.get("input")
    if prompt and other and prompt != other:
        raise ApiError(400, "'input' is another name of 'prompt': send one of them", param="input", code="conflict")
    if prompt or other:
        wanted["prompt"] = prompt or other
    if isinstance(wanted.get("tags"), list):
        wanted["tags"] = ",".join(wanted["tags"])
    if model:
        wanted["model"] = model
    return wanted


def time_limit(request: Mapping[str, Any], least: float) -> float:
    """Seconds that a piece may take: `least`, but at least 5 times its duration and 30 (the earlier gateway's rule)."""
    return max(least, 5 * float(request.get("duration") or USUAL_DURATION_SEC) + 30)


def piece(body: bytes) -> dict[str, Any]:
    """The server's answer of status 200, whose `audio_url` ends in a file's name; raises AnswerError."""
    content = json_object(body)
    if content.get("status") in FAILED:
        raise AnswerError(f"no music: {quoted(content.get('message') or content['status'], 300)}")
    audio_file(content)
    return content


def audio_file(content: Mapping[str, Any]) -> str:
    """The name of a piece's file; raises AnswerError for a missing or malformed name."""
    url = content.get("audio_url")
    try:
        name = urlsplit(url).path.rpartition("/")[2] if isinstance(url, str) else ""
    except ValueError:
        name = ""
    if not AUDIO_FILE.fullmatch(name):
        raise AnswerError(f"its audio_url names no file: {quoted(url, 200)!r}")
    return name


PROTOCOL = WireProtocol(
    name="heartmula",
    about="HeartMula's music server: one request a piece, whose audio is fetched by its file's name",
    capabilities=frozenset({"music"}),
    music=Music(music_request, time_limit, piece, audio_file, "/audio/"),
    first_byte_sec=math.inf,  # it begins to answer when the piece is made, within the piece's own time_limit
    implied=(Implied("heartmula_base_url", ("music",), {"music": 2}, class_setting="music_backend_class"),),
)
