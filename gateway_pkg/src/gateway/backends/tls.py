"""TLS to https backends: how the gateway verifies their certificates, and its own client certificate."""

from __future__ import annotations

import ssl

from gateway.backends.settings import UpstreamSettings
from gateway.errors import Refusal


def client_context(settings: UpstreamSettings) -> ssl.SSLContext:
    """The TLS context of all backend connections; raises Refusal when one of its files cannot be read."""
    bundle = settings.backend_ca_bundle
    try:
        context = ssl.create_default_context(cafile=bundle)
    except OSError as error:  # SSLError is one
        raise Refusal(f"BACKEND_CA_BUNDLE {bundle} cannot be used ({error}); give a PEM file") from None
    if not settings.backend_verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings.backend_client_cert:
        certificate, _, key = settings.backend_client_cert.partition(",")
        try:
            context.load_cert_chain(certificate.strip(), key.strip() or None)
        except OSError as error:
            problem = f"is not a certificate and its key ({error.strerror or error})"
            advice = "give one PEM file with both, or two, comma-separated"
            raise Refusal(f"BACKEND_CLIENT_CERT {settings.backend_client_cert} {problem}; {advice}") from None
    return context
