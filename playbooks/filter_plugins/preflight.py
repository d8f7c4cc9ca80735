"""What preflight refuses: each problem is one line that says what to type.

Pure functions: variables and facts in, a list of problems out, empty when all is well.
"""

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SETTABLE = (
    "appliance_address",
    "appliance_mode",
    "appliance_platform",
    "appliance_python",
    "appliance_root",
    "appliance_service_manager",
    "appliance_services_override",
)
GOOD_TOKEN = "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"  # noqa: S105 - a command, no secret
MINIMUM_TOKEN = 16  # the gateway's own limit; it refuses these placeholders too
PLACEHOLDERS = frozenset(
    {
        "change-me-in-production",
        "changeme-changeme",
        "your-token-here-123",
        "replace-me-with-a-token",
        "gateway_bearer_token",
    }
)
MINIMUM_CORE, BELOW_CORE = (2, 19), (2, 22)  # ansible-core, as pyproject.toml says
MINIMUM_PYTHON = (3, 11)
SYSTEM_MEMORY_MB = 200  # what the system itself needs beside the services
SOCKET_PATH_BYTES = 103  # sun_path of macOS, without its closing zero
SYSTEMS = {"Debian": 12, "Ubuntu": 22.04, "MacOSX": 13}

# The gateway's own list, read and not imported: an operator's machine lacks what the gateway needs.
_SOURCE = Path(__file__).parents[2] / "gateway_pkg/src/gateway/backends/protocols/__init__.py"
PROTOCOLS = re.findall(r"^    (\w+)\.PROTOCOL,$", _SOURCE.read_text(encoding="utf-8"), re.MULTILINE)

Check = tuple[Callable[[Any], bool], str]


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(check(item) for item in value)


def _is_network(value: Any) -> bool:
    try:
        ipaddress.ip_network(value)
    except ValueError:
        return False
    return isinstance(value, str) and "/" in value


NAME: Check = (_matches(r"[a-z_][a-z0-9_-]{0,30}"), "lower-case letters, digits, - and _")
PATH: Check = (_matches(r"(/[\w.~-]+)+"), "a path such as /health")
COUNT: Check = (_whole(1, 10**6), "a whole number from 1")
BOOLEAN: Check = (lambda value: isinstance(value, bool), "true or false")
FIELDS: Mapping[str, Check] = {
    "api_key": (_matches(r"\$\{[A-Z][A-Z0-9_]*\}"), "a variable of the gateway's environment such as ${VLLM_API_KEY}"),
    "allow_from": (_list_of(_is_network), "a list of networks such as [10.10.22.0/24, 192.0.2.7/32]"),
    "base_path": PATH,
    "capabilities": (_list_of(_matches(r"[a-z_]+")), "a list such as [chat, completions]"),
    "class": NAME,
    "cooldown_ms": (_whole(0, 60_000), "a whole number of milliseconds from 0 to 60000"),
    "description": (_matches(r"[^\n]+"), "one line of text"),
    "health": PATH,
    "images_allow_base64": BOOLEAN,
    "images_format": (_matches(r"(url|b64_json)?"), "url, b64_json or an empty text"),
    "label": (_matches(r"[A-Za-z0-9.-]+"), "a name such as com.ai.gateway"),
    "memory": (_matches(r"[1-9]\d*[KMGT]|[1-9]\d?%"), "a size such as 2G or a part such as 80%"),
    "open_files": COUNT,
    "optional": BOOLEAN,
    "port": (_whole(1, 65535), "a whole number from 1 to 65535"),
    "socket": (_matches(r"run/[\w.-]+"), "a path below the service's home such as run/api.sock"),
    "stream_usage": BOOLEAN,
    "unit": NAME,
    "url": (_matches(r"https?://[^/\s?#@]+"), "an address such as https://10.10.22.40:8000"),
    "user": NAME,
}


# What any backend may be told, whether its catalog entry says something of it or not.
BACKEND_OPTIONS: Mapping[str, Any] = {
    "api_key": None,
    "cooldown_ms": None,
    "max_connections": None,
    "payload_policy": {"images_format": None, "images_allow_base64": None, "images_max_bytes": None},
    "protocol": None,
    "queue": {"max": None, "timeout_sec": None},
    "stream_usage": None,
}


# What an entry of the catalog must say, and may say, by where its service is reached.
OWN = {"label": None, "unit": None, "user": None, "limits": {"memory": None, "open_files": None}}
BACKEND = dict.fromkeys(("class", "base_path", "capabilities", "limits", "optional"))
SHAPES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "port": ({**OWN, "port": None, "allow_from": None}, {"backend": {**BACKEND, "limits": {}}, "listeners": {}}),
    "socket": ({**OWN, "socket": None}, {}),
    "url": ({"url": None, "backend": {**BACKEND, "limits": {}}}, {}),
}
LISTENER = dict.fromkeys(("port", "allow_from", "health"))


def catalog_problems(catalog: Mapping[str, Any]) -> Iterator[str]:
    """Entries that lack something, or say what no entry says."""
    for key, entry in catalog.items():
        here = f"appliance_catalog.{key}"
        kinds = [kind for kind in SHAPES if kind in entry]
        if len(kinds) != 1:
            yield f"{here} has {' and '.join(kinds) or 'no place'}; write one of {', '.join(SHAPES)}"
            continue
        must, may = SHAPES[kinds[0]]
        must = {**must, "description": None, "health": None}
        known = {**must, **may, **({} if kinds == ["url"] else {"needs": {"disk_mb": None, "memory_mb": None}})}
        if "listeners" in may:
            known["listeners"] = dict.fromkeys(entry.get("listeners", {}), LISTENER)
        yield from _compare(entry, known, here)
        for path, part, wanted in ((here, entry, must), (f"{here}.backend", entry.get("backend"), BACKEND)):
            lacks = [name for name in wanted if part is not None and name not in part]
            if lacks:
                yield f"{path} lacks {', '.join(lacks)}; docs/add-a-backend.md shows an entry"


def manifest_problems(manifests: Mapping[str, Any], catalog: Mapping[str, Any]) -> Iterator[str]:
    """Manifests of models that say too little, or too much."""
    for name, manifest in manifests.items():
        here = f"files/models/{name}.yml"
        if not isinstance(manifest, Mapping):
            yield f"{here}: {manifest}; docs/add-a-backend.md shows a manifest"
            continue
        for key in manifest:
            if key not in MANIFEST:
                yield f"{here}: {key} is not known; {_nearest(key, MANIFEST)}"
        for key, (fits, wanted) in MANIFEST.items():
            if key not in manifest and key != "file":
                yield f"{here} lacks {key}; write {wanted}"
            elif key in manifest and not fits(manifest[key]):
                yield f"{here}: {key} is {manifest[key]!r}; write {wanted}"
        for service in manifest["for"] if MANIFEST["for"][0](manifest.get("for")) else ():
            if service not in catalog:
                yield f"{here}: for names {service}, which is not in the catalog; {_nearest(service, catalog)}"


def override_problems(override: Any, catalog: Mapping[str, Any]) -> list[str]:
    """Keys that the catalog does not have, and values of the wrong kind, in one `appliance_services_override`."""
    return list(_compare(override, catalog, "appliance_services_override"))


MANIFEST: Mapping[str, Check] = {
    "source": (_matches(r"(https?://\S+/)?[^\s:]*[^\s:/]"), "an https address, or a path that begins at the checkout"),
    "sha256": (_matches(r"[0-9a-f]{64}"), "the 64 hexadecimal digits that sha256sum prints"),
    "bytes": (_whole(1, 10**13), "the file's size, a whole number"),
    "licence": (_matches(r"[^\n]+"), "one line of text"),
    "for": (_list_of(_matches(r"[a-z0-9_]+")), "a list of services such as [llamacpp]"),
    "file": (_matches(r"\w[\w.+-]*"), "a file name such as model.gguf"),
}


def _compare(given: Any, known: Mapping[str, Any], path: str) -> Iterator[str]:
    if not isinstance(given, Mapping):
        yield f"{path} is {given!r}; write a mapping of {', '.join(known)}"
        return
    counts = path.endswith(".backend.limits")  # any capability may have a limit
    known = {**BACKEND_OPTIONS, **known} if path.endswith(".backend") else known
    for key, value in given.items():
        here = f"{path}.{key}"
        if key not in known and not counts:
            yield f"{here} is not in the catalog; {_nearest(key, known)}"
        elif isinstance(known.get(key), Mapping):
            yield from _compare(value, known[key], here)
        elif key == "protocol":
            if value not in PROTOCOLS:
                near = difflib.get_close_matches(str(value), PROTOCOLS, n=1)
                meant = f"write {near[0]}; " if near else ""
                yield f"{here} is {value!r}; {meant}there are {', '.join(PROTOCOLS)}"
        else:
            fits, wanted = FIELDS.get(key, COUNT)
            if not fits(value):
                yield f"{here} is {value!r}; write {wanted}"


def _nearest(name: Any, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(names), n=1)
    return f"write {near[0]}" if near else f"it has {', '.join(names)}"


def inventory_problems(
    catalog: Mapping[str, Any], groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Any]
) -> list[str]:
    """All that is wrong with the inventory, before any host is asked."""
    hosts = groups["all"]
    problems = list(catalog_problems(catalog))
    if problems:
        return problems  # nothing can be derived from it
    problems += _group_problems(catalog, groups)
    problems += {
        problem: None for host in hosts for problem in manifest_problems(hostvars[host]["appliance_manifests"], catalog)
    }
    overrides: dict[str, list[str]] = {}
    for host in hosts:
        variables = hostvars[host]
        problems += _misspelt(host, variables)
        for problem in override_problems(variables.get("appliance_services_override", {}), catalog):
            overrides.setdefault(problem, []).append(host)
    problems += [f"{', '.join(where)}: {problem}" for problem, where in overrides.items()]
    if overrides:
        return problems  # the services cannot be resolved
    for host in hosts:
        problems += _clashes(host, hostvars[host]["appliance_listeners"])
        problems += _rootless_problems(host, hostvars[host])
    for gateway in groups.get("gateway", []):
        problems += _unreachable(gateway, groups, hostvars)
        problems += token_problems(gateway, hostvars[gateway].get("gateway_bearer_token"))
    return problems


def _group_problems(catalog: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for group in groups:
        near = difflib.get_close_matches(group, list(catalog), n=1, cutoff=0.8)
        if near and group not in catalog:
            yield f"group {group} is no service; rename it to {near[0]} in the inventory"
    for service, entry in catalog.items():
        if "url" in entry and groups.get(service):
            yield f"group {service}: that service runs at {entry['url']}, on no host of ours; remove the group"
    if not groups.get("gateway"):
        yield "no host is in the group gateway; add to the inventory: gateway: {hosts: {<name of a host>: }}"


def _misspelt(host: str, variables: Mapping[str, Any]) -> Iterator[str]:
    """Variables that nearly have the name of a setting would be ignored without a word."""
    for name in variables:
        near = difflib.get_close_matches(name, SETTABLE, n=1, cutoff=0.9)
        if near and name not in SETTABLE and not name.endswith("_services"):
            yield f"{host}: {name} sets nothing; write {near[0]}"


def _clashes(host: str, listeners: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    holders: dict[int, Mapping[str, Any]] = {}
    for listener in _with_port(listeners):
        first = holders.setdefault(listener["port"], listener)
        if first is not listener:
            other = _override(listener, _free_port(listener["port"], listeners))
            yield f"{host}: port {listener['port']} is wanted by {_called(first)} and {_called(listener)}; set {other}"


def _with_port(listeners: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [listener for listener in listeners if "port" in listener]


def _called(listener: Mapping[str, Any]) -> str:
    api = listener["name"] == "api"
    return str(listener["service"]) if api else f"{listener['service']} ({listener['name']})"


def _free_port(port: int, listeners: Iterable[Mapping[str, Any]]) -> int:
    taken = {listener["port"] for listener in _with_port(listeners)}
    return next(number for number in range(port + 1, 65536) if number not in taken)


def _override(listener: Mapping[str, Any], port: int) -> str:
    """The line that gives a listener another port."""
    inner = f"port: {port}"
    if listener["name"] != "api":
        inner = f"listeners: {{{listener['name']}: {{{inner}}}}}"
    return f"appliance_services_override: {{{listener['service']}: {{{inner}}}}}"


def _rootless_problems(host: str, variables: Mapping[str, Any]) -> Iterator[str]:
    mode = variables["appliance_mode"]
    if mode not in ("system", "rootless"):
        yield f"{host}: appliance_mode is {mode!r}; write system or rootless"
    if mode == "rootless":
        for listener in _with_port(variables["appliance_listeners"]):
            if listener["allow_from"]:
                yield (
                    f"{host}: {_called(listener)} has allow_from, but rootless has no firewall; "
                    "set allow_from: [] or appliance_mode: system"
                )


def _unreachable(gateway: str, groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Any]) -> Iterator[str]:
    """Backends on other hosts that listen on loopback."""
    for service, entry in hostvars[gateway]["appliance_services"].items():
        for host in groups.get(service, []) if "backend" in entry else []:
            if host != gateway and not hostvars[host]["appliance_services"][service]["allow_from"]:
                yield (
                    f"{host}: {service} listens on loopback, out of reach of the gateway on {gateway}; set "
                    f"appliance_services_override: {{{service}: {{allow_from: [<address of {gateway}>/32]}}}}"
                )


def token_problems(host: str, token: Any) -> Iterator[str]:
    """A token that the operator chose and that is easily guessed; the token itself is never shown."""
    if not token:
        return  # one is made
    if len(str(token)) < MINIMUM_TOKEN or str(token).lower() in PLACEHOLDERS:
        yield (
            f"{host}: gateway_bearer_token is easily guessed ({len(str(token))} characters, {MINIMUM_TOKEN} is the "
            f"least, no placeholder); take what this prints: {GOOD_TOKEN}"
        )


def core_problems(version: str) -> list[str]:
    """`version` of ansible-core, such as `2.19.14`."""
    major, minor = version.split(".")[:2]
    if MINIMUM_CORE <= (int(major), int(minor)) < BELOW_CORE:
        return []
    least, below = (".".join(map(str, bound)) for bound in (MINIMUM_CORE, BELOW_CORE))
    return [f"ansible-core {version} was not tried; type: pip install 'ansible-core>={least},<{below}'"]


def python_problems(version: str, path: str) -> list[str]:
    """`version` as `3.11.2`, or anything else when `path` gave none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) >= MINIMUM_PYTHON:
        return []
    least = ".".join(map(str, MINIMUM_PYTHON))
    return [
        f"no Python {least} or newer at {path} ({version if found else 'none'}); install one (Debian 12, Ubuntu "
        f"24.04: sudo apt-get install python3; macOS: python.org) and set appliance_python: <its path>, or set "
        "release_python_archive and release_python_sha256 to a standalone CPython's"
    ]


def host_problems(facts: Mapping[str, Any], variables: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """All that keeps the declared services from a host.

    `facts` are Ansible's, `variables` the host's, `state` the answer of the module `host_state`.
    """
    return [
        *(_system_problems(facts, variables) if variables["appliance_mode"] == "system" else ()),
        *_room_problems(facts, variables, state),
        *_silent(variables, state),
        *_long_sockets(variables),
        *(
            problem
            for listener in _with_port(variables["appliance_listeners"])
            for problem in _taken(listener, variables, state["listeners"])
        ),
    ]


def _system_problems(facts: Mapping[str, Any], variables: Mapping[str, Any]) -> Iterator[str]:
    name, version = facts["distribution"], facts["distribution_version"]
    number = re.match(r"\d+(\.\d+)?", version)
    if name not in SYSTEMS or not number or float(number[0]) < SYSTEMS[name]:
        least = ", ".join(f"{system} {release}" for system, release in SYSTEMS.items())
        yield f"{name} {version} is not supported; take {least} or newer, or set appliance_mode: rootless"
    if variables["appliance_service_manager"] == "supervisor":
        yield f"{facts['service_mgr']} runs this host, no systemd or launchd; set appliance_mode: rootless"


def _room_problems(facts: Mapping[str, Any], variables: Mapping[str, Any], state: Mapping[str, Any]) -> Iterator[str]:
    """Disk for the services that are not there yet and for models, memory for all services together."""
    services = variables["appliance_services"]
    names = variables["appliance_host_services"]
    disk = {name: _need(services[name], "disk_mb") for name in names if name not in state["services"]}
    for name, manifest in variables["appliance_manifests"].items():
        if set(manifest["for"]) & set(disk):
            disk[f"model {name}"] = manifest["bytes"] // 1_000_000
    if state["free_mb"] < sum(disk.values()):
        where = variables["appliance_lib"]
        yield f"{state['free_mb']} MB are free for {where}, {_sum(disk)}; make room there"
    memory = {"system": SYSTEM_MEMORY_MB} | {name: _need(services[name], "memory_mb") for name in names}
    if names and facts["memtotal_mb"] < sum(memory.values()):
        most = max(names, key=lambda name: memory[name])
        yield f"{facts['memtotal_mb']} MB of memory, {_sum(memory)}; take a larger host, or another one for {most}"


def _need(entry: Mapping[str, Any], what: str) -> int:
    return int(entry.get("needs", {}).get(what, 0))


def _sum(needs: Mapping[str, int]) -> str:
    return (
        f"{sum(needs.values())} MB are needed ({', '.join(f'{name} {need}' for name, need in needs.items() if need)})"
    )


def _silent(variables: Mapping[str, Any], state: Mapping[str, Any]) -> Iterator[str]:
    """Servers of others that the gateway of this host cannot do without."""
    for service, entry in variables["appliance_services"].items():
        reason = state["silent"].get(entry.get("url"))
        if reason and not entry["backend"]["optional"]:
            yield (
                f"{service} at {entry['url']} does not answer ({reason}); start it, or set "
                f"appliance_services_override: {{{service}: {{backend: {{optional: true}}}}}}"
            )


def _long_sockets(variables: Mapping[str, Any]) -> Iterator[str]:
    for listener in variables["appliance_listeners"]:
        excess = len(listener.get("socket", "").encode()) - SOCKET_PATH_BYTES
        if excess > 0:
            yield f"{listener['socket']} is {excess} bytes too long for a unix socket; set a shorter appliance_root"


def _taken(
    listener: Mapping[str, Any], variables: Mapping[str, Any], held: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """The foreign process on the port of `listener`, if there is one."""
    for other in held:
        if other["port"] != listener["port"] or _is_ours(other, variables):
            continue
        if listener["bind"] == "0.0.0.0" or other["address"] in ("0.0.0.0", "::", listener["bind"]):  # noqa: S104
            who = f"pid {other['pid']} ({other['name']})" if other["pid"] else "a process of another user"
            free = _free_port(listener["port"], [*held, *variables["appliance_listeners"]])
            yield f"port {listener['port']} is held by {who}; stop it or set {_override(listener, free)}"
            return


def _is_ours(process: Mapping[str, Any], variables: Mapping[str, Any]) -> bool:
    units = [entry["unit"] for entry in variables["appliance_services"].values() if "unit" in entry]
    homes = [f"{variables['appliance_lib']}/{unit}/" for unit in units]
    return any(home in process["command"] for home in homes)


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "catalog_problems": inventory_problems,
            "core_problems": core_problems,
            "host_problems": host_problems,
            "python_problems": python_problems,
        }
