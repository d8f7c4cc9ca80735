"""The settings of requests and answers."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

from gateway.config.settings import Section, setting


def _origins(given: object) -> object:
    names = tuple(filter(None, (name.strip() for name in given.split(",")))) if isinstance(given, str) else given
    for name in names if isinstance(names, tuple) else ():
        if not _ORIGIN.fullmatch(name):
            raise ValueError(f"'{name}' is no origin; write scheme and host, such as https://chat.example.org")
    return names


_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+")
Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_origins)]


class RequestSettings(Section, heading="Requests and answers"):
    max_request_bytes: int = setting(
        1_000_000, "Largest JSON body of a request, without the pictures and sounds that it holds in base64.", ge=1
    )
    max_request_bytes_strict: bool = setting(False, "Whether `MAX_REQUEST_BYTES` bounds those with pictures, too.")
    max_upload_bytes: int = setting(
        26_214_400, "Largest multipart body of a request, and JSON body with pictures and sounds.", ge=1
    )
    request_body_timeout_sec: float = setting(600, "Longest time to receive a request's body.", gt=0)
    response_send_timeout_sec: float = setting(
        300, "How long a client may stop reading before the gateway closes its connection.", gt=0
    )
    cors_allow_origins: Origins = setting(
        (), "Comma-separated origins of pages in a browser that may call, such as https://chat.example.org; `*` is any."
    )
    public_base_url: str = setting(
        "", "Start of the URLs of stored images and music; empty: as in the request's `Host`."
    )
