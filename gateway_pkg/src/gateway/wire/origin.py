"""Where a backend is: scheme, host and port of its base URL."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")


@dataclass(frozen=True, slots=True)
class Origin:
    """One scheme://host:port, and the path of the base URL below which the API lives (`prefix`, no final slash)."""

    tls: bool
    host: str
    port: int
    prefix: bytes
    host_header: bytes

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises ValueError with one line that says what is wrong."""
        if re.search(r"[^!-~]", url):
            raise ValueError(f"{url!r}: blanks, control and non-ASCII characters have no place in a URL")
        if "@" in url.partition("://")[2].split("/")[0]:
            raise ValueError("the URL must not hold a user or password")  # and is not repeated here for that
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as exc:
            raise ValueError(f"{url!r}: {exc}") from None
        if parts.scheme not in ("http", "https"):
            raise ValueError(f"{url!r}: must begin with http:// or https://")
        if "?" in url or "#" in url:
            raise ValueError(f"{url!r}: must not have a query or fragment")
        if not (_NAME.fullmatch(host) or is_address(host)):
            raise ValueError(f"{url!r}: has no valid host")
        if port == 0:
            raise ValueError(f"{url!r}: port 0 cannot be connected to")
        tls = parts.scheme == "https"
        default = 443 if tls else 80
        name = f"[{host}]" if ":" in host else host
        header = name if port in (None, default) else f"{name}:{port}"
        return cls(tls, host, port or default, parts.path.rstrip("/").encode(), header.encode())

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host_header.decode()}"


def is_address(host: str) -> bool:
    """An IPv4 or IPv6 address, without zone or brackets."""
    try:
        return "%" not in host and bool(ipaddress.ip_address(host))
    except ValueError:
        return False
