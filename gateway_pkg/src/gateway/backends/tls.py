"""TLS to https backends: how the gateway verifies their certificates, and its own client certificate."""

from __future__ import annotations

import ssl

from gateway.backends.settings import UpstreamSettings
from gateway.errors import Refusal


def client_context(settings: UpstreamSettings) -> ssl.SSLContext:
    """The TLS context of all backend connections; raises Refusal when one of its files cannot be read."""
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
    if settings.backend_client_cert:
        certificate, _, key = settings.backend_client_cert.partition(",")
        try:
            context.load_cert_chain(certificate.strip(), key.strip() or None)
        except OSError as error:  # SSLError is one
            raise Refusal(
                f"BACKEND_CLIENT_CERT {settings.backend_client_cert} is not a certificate and its key "
                f"({error.strerror or error}); give one PEM file with both, or two, comma-separated"
            ) from None
    return context
