"""What follows from the catalog: listeners and the gateway's backends.

Pure functions: services and inventory in, plain lists and mappings out. `services` is always the resolved
catalog of a host (`appliance_services`), a mapping from key to entry.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Entry = Mapping[str, Any]
Services = Mapping[str, Entry]


def listeners(services: Services, names: Iterable[str], lib: str = "/var/lib") -> list[dict[str, Any]]:
    """Every listener of the services `names`: the main one is called `api`, others by their key.

    One with a port is bound to loopback when `allow_from` is empty, else to all addresses, behind the firewall.
    One with a `socket` is that unix socket below the service's home, and has no port, address or `allow_from`.
    """
    return [
        {
            "service": service,
            "name": name,
            **_place(entry, f"{lib}/{services[service]['unit']}"),
            "user": services[service]["user"],
            "unit": services[service]["unit"],
            "health": entry["health"],
        }
        for service in names
        if "url" not in services[service]  # somebody else's; preflight refuses a group of its name
        for name, entry in _named_listeners(services[service])
    ]


def _named_listeners(entry: Entry) -> list[tuple[str, Entry]]:
    return [("api", entry), *entry.get("listeners", {}).items()]


def _place(entry: Entry, home: str) -> dict[str, Any]:
    if "socket" in entry:
        return {"socket": f"{home}/{entry['socket']}"}
    allowed = list(entry["allow_from"])
    # The firewall's rule comes before the listener.
    return {"port": entry["port"], "bind": "0.0.0.0" if allowed else "127.0.0.1", "allow_from": allowed}  # noqa: S104


def address(hostvars: Mapping[str, Any], host: str) -> str:
    """Where others reach `host`: `appliance_address`, else `ansible_host`, else its name (IPv6 bracketed)."""
    variables = hostvars[host]
    found = str(variables.get("appliance_address") or variables.get("ansible_host") or host)
    return f"[{found}]" if ":" in found else found


def backends(
    services: Services, groups: Mapping[str, list[str]], hostvars: Mapping[str, Any], gateway_host: str
) -> dict[str, Any]:
    """The document backends.yaml of `gateway_host`: a backend for each host of each service that is one.

    A service with a `url` runs elsewhere, and is one backend.
    """
    found = {}
    for service, own in services.items():
        if "url" in own:
            found[f"{own['backend']['class']}@{service}"] = _backend(own, own["url"])
        for host in groups.get(service, []) if "backend" in own else []:
            entry = hostvars[host]["appliance_services"][service]
            reached_at = "127.0.0.1" if host == gateway_host else address(hostvars, host)
            found[f"{entry['backend']['class']}@{host}"] = _backend(entry, f"http://{reached_at}:{entry['port']}")
    return {"backends": found}


# What an entry's `backend` may say beyond what every one does, by the same name in backends.yaml.
OPTIONS = ("protocol", "queue", "payload_policy", "stream_usage", "max_connections", "cooldown_ms", "api_key")


def _backend(entry: Entry, origin: str) -> dict[str, Any]:
    backend = entry["backend"]
    return {
        "class": backend["class"],
        "base_url": f"{origin.rstrip('/')}{backend['base_path']}",
        "description": entry["description"],
        "supported_capabilities": list(backend["capabilities"]),
        "concurrency_limits": dict(backend["limits"]),
        "health": {"liveness": entry["health"], "readiness": entry["health"]},
        "optional": backend["optional"],
        **{name: backend[name] for name in OPTIONS if name in backend},
    }


# 0.2 s of silence at 11025 Hz, 16 bits a sample; every byte of it is ASCII, as Ansible's forms need it.
SILENCE = (
    "RIFF\x24\x11\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x11\x2b\0\0\x22\x56\0\0\x02\0\x10\0data\0\x11\0\0" + "\0" * 0x1100
)
# What a client asks of each capability that a backend declares: path, body without `model`, kind of the body.
SMOKE: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "chat": ("chat/completions", {"max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]}, "json"),
    "completions": ("completions", {"max_tokens": 8, "prompt": "Once upon a time"}, "json"),
    "embeddings": ("embeddings", {"input": "a sentence"}, "json"),
    "rerank": ("rerank", {"query": "a cat", "documents": ["A kitten.", "A bank."]}, "json"),
    "images": ("images/generations", {"prompt": "a cat", "size": "256x256"}, "json"),
    "tts": ("audio/speech", {"input": "Hello.", "voice": "alloy"}, "json"),
    "transcription": (
        "audio/transcriptions",
        {"file": {"content": SILENCE, "filename": "silence.wav", "mime_type": "audio/wav"}},
        "form-multipart",
    ),
    "music": ("music/generations", {"prompt": "a short tune", "duration": 5}, "json"),
}


def smoke_requests(document: Mapping[str, Any], services: Services) -> list[dict[str, Any]]:
    """What a client asks to see that the gateway of this backends.yaml works: models, then each class of backend.

    An optional backend of somebody else may be down, and is not asked.
    """
    spared = {
        entry["backend"]["class"] for entry in services.values() if "url" in entry and entry["backend"]["optional"]
    }
    classes = {backend["class"]: backend["supported_capabilities"] for backend in document["backends"].values()}
    asked = [
        {"method": "POST", "path": f"/v1/{path}", "format": form, "body": {"model": name, **body}}
        for name, capabilities in classes.items()
        for capability, (path, body, form) in SMOKE.items()
        if capability in capabilities and name not in spared
    ]
    return [{"method": "GET", "path": "/v1/models", "format": "json", "body": {}}, *asked]


def chosen(names: Iterable[str], run_tags: Iterable[str], verbs: Iterable[str] = ("install", "setup")) -> list[str]:
    """The services that `--tags` asks for, as `install-<name>` or `setup-<name>`; all of them without tags."""
    tags = set(run_tags)
    return [name for name in names if "all" in tags or any(f"{verb}-{name}" in tags for verb in verbs)]


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "listeners": listeners,
            "backends": backends,
            "smoke_requests": smoke_requests,
            "chosen": chosen,
        }
