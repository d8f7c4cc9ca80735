"""What follows from the catalog: listeners and the gateway's backends.

Pure functions: services and inventory in, plain lists and mappings out. `services` is always the resolved
catalog of a host (`appliance_services`), a mapping from key to entry.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Entry = Mapping[str, Any]
Services = Mapping[str, Entry]


def listeners(services: Services, names: Iterable[str]) -> list[dict[str, Any]]:
    """Every listener of the services `names`: the main one is called `api`, others by their key.

    Bound to loopback when `allow_from` is empty, else to all addresses, behind the firewall.
    """
    return [
        {
            "service": service,
            "name": name,
            "port": entry["port"],
            "bind": "0.0.0.0" if entry["allow_from"] else "127.0.0.1",  # noqa: S104 - the firewall's rule comes first
            "allow_from": list(entry["allow_from"]),
            "user": services[service]["user"],
            "unit": services[service]["unit"],
            "health": entry["health"],
        }
        for service in names
        for name, entry in _named_listeners(services[service])
    ]


def _named_listeners(entry: Entry) -> list[tuple[str, Entry]]:
    return [("api", entry), *entry.get("listeners", {}).items()]


def address(hostvars: Mapping[str, Any], host: str) -> str:
    """Where others reach `host`: `appliance_address`, else `ansible_host`, else its name (IPv6 bracketed)."""
    variables = hostvars[host]
    found = str(variables.get("appliance_address") or variables.get("ansible_host") or host)
    return f"[{found}]" if ":" in found else found


def backends(
    services: Services, groups: Mapping[str, list[str]], hostvars: Mapping[str, Any], gateway_host: str
) -> dict[str, Any]:
    """The document backends.yaml of `gateway_host`: a backend for each host of each service that is one."""
    return {
        "backends": {
            f"{entry['backend']['class']}@{host}": _backend(
                entry, "127.0.0.1" if host == gateway_host else address(hostvars, host)
            )
            for service in services
            for host in groups.get(service, [])
            if "backend" in (entry := hostvars[host]["appliance_services"][service])
        }
    }


# What an entry's `backend` may say beyond what every one does, by the same name in backends.yaml.
OPTIONS = ("protocol", "queue", "payload_policy", "stream_usage", "max_connections", "cooldown_ms")


def _backend(entry: Entry, reached_at: str) -> dict[str, Any]:
    backend = entry["backend"]
    return {
        "class": backend["class"],
        "base_url": f"http://{reached_at}:{entry['port']}{backend['base_path']}",
        "description": entry["description"],
        "supported_capabilities": list(backend["capabilities"]),
        "concurrency_limits": dict(backend["limits"]),
        "health": {"liveness": entry["health"], "readiness": entry["health"]},
        "optional": backend["optional"],
        **{name: backend[name] for name in OPTIONS if name in backend},
    }


def smoke_requests(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a client asks to see that the gateway of this backends.yaml works: models, then each class of backend."""
    bodies: dict[str, tuple[str, dict[str, Any]]] = {
        "/v1/chat/completions": ("chat", {"max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]}),
        "/v1/embeddings": ("embeddings", {"input": "a sentence"}),
    }
    classes = {backend["class"]: backend["supported_capabilities"] for backend in document["backends"].values()}
    asked = [
        {"method": "POST", "path": path, "body": {"model": name, **body}}
        for name, capabilities in classes.items()
        for path, (capability, body) in bodies.items()
        if capability in capabilities
    ]
    return [{"method": "GET", "path": "/v1/models", "body": {}}, *asked]


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
