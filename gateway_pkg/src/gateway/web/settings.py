"""The settings of requests and answers."""

from __future__ import annotations

from gateway.config.settings import Section, setting


class RequestSettings(Section, heading="Requests and answers"):
    max_request_bytes: int = setting(1_000_000, "Largest JSON body of a request.", ge=1)
    max_upload_bytes: int = setting(26_214_400, "Largest multipart body of a request.", ge=1)
    request_body_timeout_sec: float = setting(600, "Longest time to receive a request's body.", gt=0)
    response_send_timeout_sec: float = setting(
        300, "How long a client may stop reading before the gateway closes its connection.", gt=0
    )
    public_base_url: str = setting(
        "", "Start of the URLs of stored images and music; empty: as in the request's `Host`."
    )
