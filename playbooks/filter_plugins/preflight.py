"""What preflight refuses: each problem is one line that says what to type.

Pure functions: variables and facts in, a list of problems out, empty when all is well.
"""

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
MINIMUM_PYTHON = (3, 11)
MINIMUM_DISK_MB = 1500  # two releases of everything: 2 x 450 MB of wheels unpacked, and room for logs
MINIMUM_MEMORY_MB = 1000  # the model 360 MB, the embedder 200 MB, the gateway 90 MB, and the system
SYSTEMS = {"Debian": 12, "Ubuntu": 22.04, "MacOSX": 13}

Check = tuple[Callable[[Any], bool], str]


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(check(item) for item in value)


def _is_cidr(value: Any) -> bool:
    try:
        return isinstance(value, str) and "/" in value and bool(ipaddress.ip_network(value))
    except ValueError:
        return False


NAME: Check = (_matches(r"[a-z_][a-z0-9_-]{0,30}"), "lower-case letters, digits, - and _")
PATH: Check = (_matches(r"(/[\w.~-]+)+"), "a path such as /health")
COUNT: Check = (_whole(1, 10**6), "a whole number from 1")
FIELDS: Mapping[str, Check] = {
    "allow_from": (_list_of(_is_cidr), "a list of networks such as [10.10.22.0/24, 192.0.2.7/32]"),
    "base_path": PATH,
    "capabilities": (_list_of(_matches(r"[a-z_]+")), "a list such as [chat, completions]"),
    "class": NAME,
    "description": (_matches(r"[^\n]+"), "one line of text"),
    "health": PATH,
    "label": (_matches(r"[A-Za-z0-9.-]+"), "a name such as com.ai.gateway"),
    "memory": (_matches(r"[1-9]\d*[KMGT]|[1-9]\d?%"), "a size such as 2G or a part such as 80%"),
    "open_files": COUNT,
    "optional": (lambda value: isinstance(value, bool), "true or false"),
    "port": (_whole(1, 65535), "a whole number from 1 to 65535"),
    "unit": NAME,
    "user": NAME,
}


def override_problems(override: Any, catalog: Mapping[str, Any]) -> list[str]:
    """Keys that the catalog does not have, and values of the wrong kind, in one `appliance_services_override`."""
    return list(_compare(override, catalog, "appliance_services_override"))


def _compare(given: Any, known: Mapping[str, Any], path: str) -> Iterator[str]:
    if not isinstance(given, Mapping):
        yield f"{path} is {given!r}; write a mapping of {', '.join(known)}"
        return
    counts = path.endswith(".backend.limits")  # any capability may have a limit
    for key, value in given.items():
        here = f"{path}.{key}"
        if key not in known and not counts:
            yield f"{here} is not in the catalog; {_nearest(key, known)}"
        elif isinstance(known.get(key), Mapping):
            yield from _compare(value, known[key], here)
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
    problems = _group_problems(catalog, groups)
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
    if not groups.get("gateway"):
        yield "no host is in the group gateway; add to the inventory: gateway: {hosts: {<name of a host>: }}"
