"""The settings of requests and answers."""

from __future__ import annotations

from pydantic import Field

from gateway.config.settings import Section


class RequestSettings(Section, heading="Requests and answers"):
    max_request_bytes: int = Field(1_000_000, ge=1, description="Largest JSON body of a request.")
    max_upload_bytes: int = Field(26_214_400, ge=1, description="Largest multipart body of a request.")
    request_body_timeout_sec: float = Field(
        600, gt=0, description="Longest time for the body of a request, from its head to its end."
    )
    response_send_timeout_sec: float = Field(
        300, gt=0, description="How long a client may take nothing of what waits for it, before its connection is cut."
    )
    public_base_url: str = Field("", description="Begins the URLs of stored images and music; empty: a path alone.")
