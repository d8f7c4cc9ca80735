"""The gateway of AI Appliance: one OpenAI-compatible API in front of every backend."""

__version__ = "0.1.0"
