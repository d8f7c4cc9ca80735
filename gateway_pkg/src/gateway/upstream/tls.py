"""How certificates of https backends are verified."""

from __future__ import annotations

import ssl

from gateway.refusal import Refusal
from gateway.settings import Settings


def client_context(settings: Settings) -> ssl.SSLContext:
    """The TLS context of all backend connections; raises Refusal when the CA bundle cannot be read."""
    try:
        context = ssl.create_default_context(
            cafile=str(settings.backend_ca_bundle) if settings.backend_ca_bundle else None
        )
    except (OSError, ssl.SSLError) as error:
        raise Refusal(
            f"BACKEND_CA_BUNDLE {settings.backend_ca_bundle} cannot be used ({error}); give a PEM file"
        ) from None
    if not settings.backend_verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
