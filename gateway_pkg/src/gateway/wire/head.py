"""What a request's head must have beyond what the parser asks for, so that no two readers of it disagree."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.errors import ApiError


def check_head(version: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raises ApiError 400, 417, 501 or 505 (RFC 9110, 10.1.1; RFC 9112, 2.3, 3.2, 6.1). Names are in lower case.

    The parser itself refuses a second Content-Length, one beside Transfer-Encoding, folded lines, blanks in names.
    """
    if version not in ("1.0", "1.1"):
        raise ApiError(505, f"HTTP/{version} is not served here; send HTTP/1.1", code="http_version")
    hosts = sum(name == b"host" for name, _ in headers)
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise ApiError(400, f"The request has {hosts} Host headers; send exactly one", code="invalid_host")
    expectations = [value.strip().lower() for name, value in headers if name == b"expect"]
    if version == "1.1" and expectations not in ([], [b"100-continue"]):
        raise ApiError(417, "The only expectation met here is 100-continue", code="expectation_failed")
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if codings and version == "1.0":
        problem = "HTTP/1.0 has no Transfer-Encoding; send Content-Length, or HTTP/1.1"
        raise ApiError(400, problem, code="invalid_framing")
    if codings not in ([], [b"chunked"]):
        problem = "Transfer-Encoding may be 'chunked' alone; compress by Content-Encoding"
        raise ApiError(501, problem, code="transfer_encoding")
