"""What a stored response is, to the dialect that makes it and the pages that show it."""

from __future__ import annotations

from functools import partial
from typing import Any

from gateway.errors import unsupported_parameter
from gateway.features.face import storage_errors

store_errors = partial(storage_errors, "Stored responses are not available now")
INCLUDABLE = ("message.input_image.image_url", "message.output_text.logprobs", "reasoning.encrypted_content")
RESPONSE = {
    "type": "object",
    "required": ["id", "object", "created_at", "status", "model", "output", "usage", "error", "incomplete_details"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "response"},
        "status": {"enum": ["completed", "incomplete"]},
        "output": {"type": "array", "items": {"type": "object"}},
        "store": {"type": "boolean", "description": "Whether the response is stored."},
    },
}
_ID = {"response_id": "$response.body#/id"}
OF_STORED: dict[str, Any] = {
    "delete": {"operationId": "delete_response", "parameters": _ID},
    "input_items": {"operationId": "list_input_items", "parameters": _ID},
    "continue": {"operationId": "responses", "requestBody": {"previous_response_id": "$response.body#/id"}},
}


def check_include(place: str, name: str) -> None:
    """Raises ApiError 400: `place` in the request asks for what is not there to be included."""
    if name not in INCLUDABLE:
        raise unsupported_parameter(place, f"it must be one of {', '.join(INCLUDABLE)}, not '{name}'")
