"""The wire protocols, one file each; the first is the one of a record without `protocol`."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.backends.protocols import a1111, comfyui, heartmula, invokeai, llamacpp, nexa, ollama, openai
from gateway.backends.protocols.wire_protocol import WireProtocol

PROTOCOLS: tuple[WireProtocol, ...] = (
    openai.PROTOCOL,
    llamacpp.PROTOCOL,
    ollama.PROTOCOL,
    nexa.PROTOCOL,
    a1111.PROTOCOL,
    comfyui.PROTOCOL,
    invokeai.PROTOCOL,
    heartmula.PROTOCOL,
)
BY_NAME: Mapping[str, WireProtocol] = {each.name: each for each in PROTOCOLS}
# By the value of IMAGES_BACKEND; of two, the first.
BY_IMAGES_BACKEND: Mapping[str, WireProtocol] = {
    each.images_backend: each for each in reversed(PROTOCOLS) if each.images_backend
}
