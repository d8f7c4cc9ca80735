"""Adapters, sans I/O: OpenAI's requests in a backend's own protocol, and its answers in OpenAI's."""
