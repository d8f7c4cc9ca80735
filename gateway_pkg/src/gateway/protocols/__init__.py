"""The APIs that are spoken to clients besides OpenAI's chat, sans I/O: translated to a chat and back."""
