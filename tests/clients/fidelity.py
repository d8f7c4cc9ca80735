"""What a client received beside what the backend sent, byte for byte."""

from __future__ import annotations

import json
from typing import Any

from tests.clients.appliance import Appliance
from tests.clients.recorder import Recorder


def post(gateway: Appliance, path: str, body: dict[str, Any]) -> bytes:
    """The body of the answer to a request that must be answered with 200."""
    with gateway.http() as client:
        answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.content


def events(stream: bytes) -> list[bytes]:
    """The stream's events and comments, each with its blank line."""
    assert stream.endswith(b"\n\n")
    return [event + b"\n\n" for event in stream.split(b"\n\n")[:-1]]


def payload(event: bytes) -> dict[str, Any]:
    """The event's JSON; {} for a comment and the terminator."""
    data = event.strip().removeprefix(b"data: ")
    parsed: dict[str, Any] = json.loads(data) if data.startswith(b"{") else {}
    return parsed


def sent(recorder: Recorder, received: bytes) -> bytes:
    """What the backend sent of the answer that the client received."""
    first = next(filter(None, map(payload, received.split(b"\n\n"))), None)
    return recorder.answer(first["id"].encode() if first else received[-64:])


def check_stream(gateway: Appliance, recorder: Recorder, path: str, body: dict[str, Any]) -> list[bytes]:
    """One upstream event is one client event, byte-equal; the usage that nobody asked for is the one exception.

    Returns the events that the client received when it asked for usage.
    """
    asked = post(gateway, path, {**body, "stream": True, "stream_options": {"include_usage": True}})
    assert asked == sent(recorder, asked)
    assert sum("usage" in payload(event) for event in events(asked)) == 1
    plain = post(gateway, path, {**body, "stream": True})
    upstream = events(sent(recorder, plain))
    assert events(plain) == [event for event in upstream if not payload(event).get("usage")]
    assert len(upstream) - len(events(plain)) == 1, "the gateway asks for usage and removes that one event"
    assert events(asked)[-1] == events(plain)[-1] == b"data: [DONE]\n\n"
    return events(asked)
