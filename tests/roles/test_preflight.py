"""Preflight refuses bad inventories and hosts with one line each, before anything is installed."""

import json
import os
import re
import socket
import subprocess
import sys
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import preflight
import pytest
import yaml
from catalog import listeners
from gateway.access import settings
from host_state import declared, linux_listeners, silence

from tests.support.ansible_run import ROOT, ansible_playbook
from tests.support.ports import NOBODYS
from tests.support.services import CATALOG


def fleet(groups: dict[str, list[str]], **variables: dict[str, Any]) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Groups and hostvars as Ansible would hand them in; `variables` by host, `services` in them is merged."""
    hosts = list(dict.fromkeys(host for members in groups.values() for host in members))
    hostvars: dict[str, Any] = {}
    for host in hosts:
        given = variables.get(host, {})
        services = deepcopy(CATALOG)
        for service, changes in given.get("appliance_services_override", {}).items():
            services.get(service, {}).update(changes)
        names = [name for name in CATALOG if host in groups.get(name, [])]
        hostvars[host] = {
            "appliance_mode": "system",
            "appliance_services": services,
            "appliance_listeners": listeners(services, names),
            "appliance_host_services": names,
            "appliance_lib": "/var/lib",
            "appliance_manifests": {},
            **given,
        }
    return {"all": hosts, **groups}, hostvars


GOOD_OVERRIDES: list[dict[str, Any]] = [
    {"llamacpp": {"port": 8090, "allow_from": ["10.10.22.0/24"], "limits": {"memory": "80%"}}},
    {"gateway": {"listeners": {"observability": {"port": 9801}}}},
    {"llamacpp": {"backend": {"limits": {"embeddings": 2}}}},
    {"llamacpp": {"backend": {"queue": {"max": 8, "timeout_sec": 30}, "stream_usage": False}}},
    {"llamacpp": {"backend": {"cooldown_ms": 0}}},
]
MILLISECONDS = "a whole number of milliseconds from 0 to 60000"
BAD_OVERRIDES: dict[str, dict[str, Any]] = {
    f"llamacpp.backend.cooldown_ms is -1; write {MILLISECONDS}": {"llamacpp": {"backend": {"cooldown_ms": -1}}},
    "llamacpp.backend.queue.max is 0; write a whole number from 1": {"llamacpp": {"backend": {"queue": {"max": 0}}}},
    "llamacpp.backend.queue is 8; write a mapping of max, timeout_sec": {"llamacpp": {"backend": {"queue": 8}}},
    "llamacpp.backend.quue is not in the catalog; write queue": {"llamacpp": {"backend": {"quue": {}}}},
    "llamacpp.backend.protocol is 'lamacpp'; write llamacpp; there are openai, llamacpp, ": {
        "llamacpp": {"backend": {"protocol": "lamacpp"}}
    },
    "llamcpp is not in the catalog; write llamacpp": {"llamcpp": {}},
    f"qqq is not in the catalog; it has {', '.join(CATALOG)}": {"qqq": {}},
    "llamacpp.prot is not in the catalog; write port": {"llamacpp": {"prot": 1}},
    "gateway.listeners.obs is not in the catalog; it has observability": {
        "gateway": {"listeners": {"obs": {"port": 1}}}
    },
    "llamacpp is 8090; write a mapping of description, label, unit, user": {"llamacpp": 8090},
    "llamacpp.backend.optional is 'yes'; write true or false": {"llamacpp": {"backend": {"optional": "yes"}}},
    "gateway.limits.memory is '1 GB'; write a size such as 2G": {"gateway": {"limits": {"memory": "1 GB"}}},
    **{
        f"llamacpp.port is {port!r}; write a whole number from 1 to 65535": {"llamacpp": {"port": port}}
        for port in ("8090", 70000, True)
    },
    **{
        f"gateway.allow_from is {value!r}; write a list of networks such as": {"gateway": {"allow_from": value}}
        for value in ("10.10.22.0/24", ["10.10.22.300/24"], ["10.10.22.5/24"], ["10.10.22.5"], [7])
    },
}


@pytest.mark.parametrize("override", GOOD_OVERRIDES)
def test_an_override_may_hold_what_the_catalog_has(override: dict[str, Any]) -> None:
    assert list(preflight.override_problems(override, CATALOG)) == []


@pytest.mark.parametrize("beginning", BAD_OVERRIDES)
def test_another_override_is_refused(beginning: str) -> None:
    (problem,) = preflight.override_problems(BAD_OVERRIDES[beginning], CATALOG)
    assert problem.startswith(f"appliance_services_override.{beginning}")


def test_the_catalog_passes_its_own_check() -> None:
    assert list(preflight.catalog_problems(CATALOG)) == []


def changed(entry: dict[str, Any], *without: str, **more: Any) -> dict[str, Any]:
    return {key: value for key, value in (entry | more).items() if key not in without}


OWN = CATALOG["gateway_embed"]
ELSEWHERE = {
    "description": "vLLM of the other team",
    "url": "https://gpu1.example:8000",
    "health": "/health",
    "backend": OWN["backend"] | {"class": "vllm", "api_key": "${VLLM_API_KEY}"},
}
SOCKET = changed(OWN, "port", "allow_from", "backend", socket="run/api.sock")


BAD_ENTRIES: dict[str, dict[str, Any]] = {
    " has port and url; write one of port, socket, url": changed(ELSEWHERE, port=8000),
    " has no place; write one of port, socket, url": changed(OWN, "port"),
    " lacks user, limits; docs/add-a-backend.md shows an entry": changed(OWN, "user", "limits"),
    ".backend lacks class; docs/add-a-backend.md shows an entry": changed(
        ELSEWHERE, backend=changed(ELSEWHERE["backend"], "class")
    ),
    ".prot is not in the catalog; write port": changed(OWN, prot=1),
    ".needs.disk is not in the catalog; write disk_mb": changed(OWN, needs={"disk": 1}),
    ".needs.disk_mb is '1G'; write a whole number from 1": changed(OWN, needs={"disk_mb": "1G"}),
    ".listeners.b.port is 0; write a whole number from 1 to 65535": changed(OWN, listeners={"b": {"port": 0}}),
    ".allow_from is not in the catalog; it has label, unit, user, limits, ": changed(SOCKET, allow_from=[]),
    ".socket is '/run/x'; write a path below the service's home such as": changed(SOCKET, socket="/run/x"),
    ".url is 'gpu1:8000/v1'; write an address such as https://10.10.22.40:8000": changed(ELSEWHERE, url="gpu1:8000/v1"),
    ".backend.api_key is 'secret'; write a variable of the gateway's environment such as ${VLLM_API_KEY}": changed(
        ELSEWHERE, backend=ELSEWHERE["backend"] | {"api_key": "secret"}
    ),
}


@pytest.mark.parametrize("entry", [ELSEWHERE, SOCKET])
def test_an_entry_may_be_of_each_kind(entry: dict[str, Any]) -> None:
    assert list(preflight.catalog_problems({"echo": entry})) == []


@pytest.mark.parametrize("beginning", BAD_ENTRIES)
def test_an_entry_says_all_that_one_of_its_kind_says(beginning: str) -> None:
    (problem,) = preflight.catalog_problems({"echo": BAD_ENTRIES[beginning]})
    assert problem.startswith(f"appliance_catalog.echo{beginning}")


MANIFEST = {"source": "https://a.example/m.gguf", "sha256": "0" * 64, "bytes": 9, "licence": "MIT", "for": ["llamacpp"]}


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        (MANIFEST, []),
        (changed(MANIFEST, source="models/m.gguf", file="n.gguf"), []),
        ("mapping values are not allowed here", [": mapping values are not allowed here; docs/add-a-backend.md"]),
        (changed(MANIFEST, "licence"), [" lacks licence; write one line of text"]),
        (changed(MANIFEST, sha265="0"), [": sha265 is not known; write sha256"]),
        (changed(MANIFEST, sha256="0"), [": sha256 is '0'; write the 64 hexadecimal digits that sha256sum prints"]),
        (
            changed(MANIFEST, source="ftp://a.example/m"),
            [": source is 'ftp://a.example/m'; write an https address, or"],
        ),
        (changed(MANIFEST, file="../m"), [": file is '../m'; write a file name such as model.gguf"]),
        (
            changed(MANIFEST, **{"for": ["lamacpp"]}),
            [": for names lamacpp, which is not in the catalog; write llamacpp"],
        ),
    ],
)
def test_manifests_are_judged(manifest: Any, expected: list[str]) -> None:
    problems = list(preflight.manifest_problems({"m": manifest}, CATALOG))
    assert len(problems) == len(expected)
    for problem, words in zip(problems, expected, strict=True):
        assert problem.startswith(f"files/models/m.yml{words}")


def test_a_manifest_is_refused_once_and_its_bytes_count() -> None:
    bad = {"m": changed(MANIFEST, "bytes")}
    variables = {host: {"appliance_manifests": bad} for host in ("box1", "box2")}
    problems = preflight.inventory_problems(CATALOG, *fleet(TWO, **variables))
    assert problems[:1] == ["files/models/m.yml lacks bytes; write the file's size, a whole number"]
    _, hostvars = fleet(ONE, box1={"appliance_service_manager": "systemd"})
    variables = hostvars["box1"] | {"appliance_manifests": {"m": MANIFEST | {"bytes": 49_000_000_000}}}
    (problem,) = preflight.host_problems(FACTS, variables, STATE)
    assert "50500 MB are needed (gateway 300, gateway_embed 600, llamacpp 600, model m 49000)" in problem


def test_a_server_of_others_is_asked_and_has_no_group() -> None:
    _, hostvars = fleet(ONE, box1={"appliance_service_manager": "systemd"})
    services = hostvars["box1"]["appliance_services"]
    state = STATE | {"silent": {ELSEWHERE["url"]: "Connection refused"}}
    for optional, expected in ((True, []), (False, ["vllm at https://gpu1.example:8000 does not answer (Connection"])):
        services["vllm"] = ELSEWHERE | {"backend": ELSEWHERE["backend"] | {"optional": optional}}
        problems = preflight.host_problems(FACTS, hostvars["box1"], state)
        assert [problem[: len(words)] for problem, words in zip(problems, expected, strict=True)] == expected
    with_it = CATALOG | {"vllm": ELSEWHERE}
    assert preflight.inventory_problems(with_it, *fleet(ONE)) == []
    (problem,) = preflight.inventory_problems(with_it, *fleet(ONE | {"vllm": ["box1"]}))
    assert problem == "group vllm: that service runs at https://gpu1.example:8000, on no host of ours; remove the group"


def test_a_socket_of_a_deep_directory_is_refused() -> None:
    _, hostvars = fleet(ONE, box1={"appliance_service_manager": "systemd"})
    listener = {"service": "x", "name": "api", "socket": "/" + "d" * 110 + "/run/api.sock"}
    variables = hostvars["box1"] | {"appliance_listeners": [*hostvars["box1"]["appliance_listeners"], listener]}
    (problem,) = preflight.host_problems(FACTS, variables, STATE)
    assert problem.endswith("is 21 bytes too long for a unix socket; set a shorter appliance_root")


ONE = {"gateway": ["box1"], "gateway_embed": ["box1"], "llamacpp": ["box1"]}
TWO = {"gateway": ["box1"], "llamacpp": ["box2"]}


def override(**services: dict[str, Any]) -> dict[str, Any]:
    return {"appliance_services_override": services}


INVENTORIES: dict[str, tuple[dict[str, list[str]], dict[str, Any]]] = {
    "box2: llamacpp listens on loopback, out of reach of the gateway on box1; set "
    "appliance_services_override: {llamacpp: {allow_from: [<address of box1>/32]}}": (TWO, {}),
    "box1: port 8801 is wanted by gateway (observability) and llamacpp; set "
    "appliance_services_override: {llamacpp: {port: 8803}}": (ONE, override(llamacpp={"port": 8801})),
    "box1: port 8801 is wanted by gateway and gateway (observability); set appliance_services_override: "
    "{gateway: {listeners: {observability: {port: 8803}}}}": (ONE, override(gateway={"port": 8801})),
    "no host is in the group gateway; add to the inventory: gateway: {hosts: {<name of a host>: }}": (
        {"llamacpp": ["box1"]},
        {},
    ),
    "group llamacp is no service; rename it to llamacpp in the inventory": ({**ONE, "llamacp": ["box1"]}, {}),
    "box1: appliance_service_override sets nothing; write appliance_services_override": (
        ONE,
        {"appliance_service_override": {}},
    ),
    "box1: appliance_mode is 'root'; write system or rootless": (ONE, {"appliance_mode": "root"}),
    "box1: gateway has allow_from, but rootless has no firewall; set allow_from: [] or appliance_mode: system": (
        ONE,
        {"appliance_mode": "rootless"} | override(gateway={"allow_from": ["10.10.22.0/24"]}),
    ),
}


@pytest.mark.parametrize("problem", INVENTORIES)
def test_an_inventory_that_cannot_work_is_refused(problem: str) -> None:
    groups, variables = INVENTORIES[problem]
    assert preflight.inventory_problems(CATALOG, *fleet(groups, box1=variables)) == [problem]


def test_an_inventory_that_can_work_passes() -> None:
    assert preflight.inventory_problems(CATALOG, *fleet(ONE)) == []
    within_reach = override(llamacpp={"allow_from": ["192.0.2.1/32"]})
    assert preflight.inventory_problems(CATALOG, *fleet(TWO, box2=within_reach)) == []


@pytest.mark.parametrize("token", ["abc", 7, *sorted(settings.PLACEHOLDERS)])
def test_a_token_that_is_easily_guessed_is_refused_and_never_shown(token: Any) -> None:
    (problem,) = preflight.inventory_problems(CATALOG, *fleet(ONE, box1={"gateway_bearer_token": token}))
    assert problem.startswith("box1: gateway_bearer_token is easily guessed")
    assert problem.endswith("python3 -c 'import secrets; print(secrets.token_urlsafe(32))'")
    assert str(token) not in problem.replace("gateway_bearer_token", "")


def test_preflight_and_gateway_agree_on_tokens() -> None:
    assert preflight.PLACEHOLDERS == settings.PLACEHOLDERS
    assert preflight.MINIMUM_TOKEN == settings.TOKEN_MIN_CHARS


def test_settable_names_are_those_of_the_platform() -> None:
    text = (ROOT / "playbooks/group_vars/all/platform.yml").read_text()
    facts = set(yaml.safe_load(text)) | {"appliance_services_override", "appliance_address"}
    assert set(preflight.SETTABLE) <= facts


@pytest.mark.parametrize(("version", "fits"), [("2.18.9", 0), ("2.19.0", 1), ("2.21.3rc1", 1), ("2.22.0", 0)])
def test_range_of_ansible_core(version: str, fits: bool) -> None:
    assert (preflight.core_problems(version) == []) is bool(fits)


def test_range_of_ansible_core_is_that_of_the_lock() -> None:
    least, below = (".".join(map(str, bound)) for bound in (preflight.MINIMUM_CORE, preflight.BELOW_CORE))
    assert f'"ansible-core>={least},<{below}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(("version", "fits"), [("3.11.2", 1), ("3.14.0", 1), ("3.10.12", 0), ("", 0), ("Python", 0)])
def test_python_of_a_host(version: str, fits: bool) -> None:
    problems = preflight.python_problems(version, "/usr/bin/python3")
    assert (problems == []) is bool(fits)
    assert all(problem.startswith("no Python 3.11 or newer at /usr/bin/python3") for problem in problems)


FACTS = {"distribution": "Debian", "distribution_version": "12.11", "service_mgr": "systemd", "memtotal_mb": 8000}
STATE: dict[str, Any] = {"listeners": [], "free_mb": 50_000, "services": [], "silent": {}}


def held(port: int, address: str = "0.0.0.0", command: str = "nginx: master", pid: int = 123) -> dict[str, Any]:
    listener = {"address": address, "port": port, "pid": pid, "name": "nginx", "command": command}
    return {**STATE, "listeners": [listener]}


HOSTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Fedora 41 is not supported; take Debian 12, Ubuntu 22.04, MacOSX 13 or newer, or set appliance_mode: rootless": (
        {"distribution": "Fedora", "distribution_version": "41"},
        STATE,
    ),
    "512 MB of memory, 1000 MB are needed (system 200, gateway 150, gateway_embed 250, llamacpp 400); "
    "take a larger host, or another one for llamacpp": ({"memtotal_mb": 512}, STATE),
    "90 MB are free for /var/lib, 1500 MB are needed (gateway 300, gateway_embed 600, llamacpp 600); make room there": (
        {},
        {**STATE, "free_mb": 90},
    ),
    "599 MB are free for /var/lib, 600 MB are needed (llamacpp 600); make room there": (
        {},
        {**STATE, "free_mb": 599, "services": ["gateway", "gateway_embed"]},
    ),
    "port 8088 is held by pid 123 (nginx); stop it or set appliance_services_override: {llamacpp: {port: 8089}}": (
        {},
        held(8088),
    ),
    "port 8801 is held by a process of another user; stop it or set appliance_services_override: "
    "{gateway: {listeners: {observability: {port: 8803}}}}": ({}, held(8801, pid=0)),
}
GOOD_HOSTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, STATE),
    ({"distribution": "Ubuntu", "distribution_version": "24.04"}, STATE),
    ({}, {**STATE, "free_mb": 1, "services": list(ONE)}),
    ({}, held(8088, address="192.0.2.7")),
    ({}, held(8088, command="/var/lib/llamacpp/env/bin/python serve")),
    ({}, held(9999)),
]


@pytest.mark.parametrize(
    ("facts", "state", "expected"),
    [*((*case, [problem]) for problem, case in HOSTS.items()), *((*case, []) for case in GOOD_HOSTS)],
)
def test_hosts_are_judged(facts: dict[str, Any], state: dict[str, Any], expected: list[str]) -> None:
    _, hostvars = fleet(ONE, box1={"appliance_service_manager": "systemd"})
    assert preflight.host_problems(FACTS | facts, hostvars["box1"], state) == expected


def test_system_mode_needs_a_service_manager() -> None:
    _, hostvars = fleet(ONE, box1={"appliance_service_manager": "supervisor"})
    assert preflight.host_problems(FACTS | {"service_mgr": "sysvinit"}, hostvars["box1"], STATE) == [
        "sysvinit runs this host, no systemd or launchd; set appliance_mode: rootless"
    ]


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_holder_of_a_port_is_found(family: socket.AddressFamily, address: str) -> None:
    with socket.create_server((address, 0), family=family) as server:
        port = server.getsockname()[1]
        (found,) = [item for item in linux_listeners(Path("/proc")) if item["port"] == port]
    assert found["pid"] == os.getpid()
    assert found["address"] == address
    assert "python" in found["command"]


def test_a_server_answers_whatever_it_says() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # 501 to every GET
        thread = Thread(target=server.handle_request)
        thread.start()
        assert silence(f"http://127.0.0.1:{server.server_port}") == ""
        thread.join()
    assert "Connection refused" in silence(f"http://127.0.0.1:{NOBODYS}")


def test_services_of_an_earlier_run(tmp_path: Path) -> None:
    path = tmp_path / "services.json"
    assert declared(path) == []
    path.write_text('{"schema": 1, "services": {"gateway": {}, "llamacpp": {}}}')
    assert declared(path) == ["gateway", "llamacpp"]


# The real playbook, against this machine and a directory of the test's own.


def refusals(tmp_path: Path, variables: dict[str, Any], groups: dict[str, Any] | None = None) -> list[str]:
    """The lines of the refusal of site.yml; asserts that nothing ran after it and nothing was written."""
    host = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "appliance_mode": "rootless",
        "appliance_root": str(tmp_path / "root"),
        **variables,
    }
    children = {key: {"hosts": {"box1": None}} for key in CATALOG} | (groups or {})
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(yaml.safe_dump({"all": {"hosts": {"box1": host}, "children": children}}))
    json_lines = {"ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
    site = ROOT / "playbooks/site.yml"
    run = ansible_playbook(site, "--tags", "preflight", inventory=inventory, environment=json_lines)
    assert run.status == 2, run.output
    assert "Traceback" not in run.output
    assert "PLAY [Services that are no longer declared]" not in run.output
    assert not (tmp_path / "root").exists()
    (answer,) = re.findall(r"^fatal: \[box1\]: FAILED! => (\{.*\})$", run.output, re.MULTILINE)
    message: str = json.loads(answer)["msg"]
    return message.splitlines()


def test_the_playbook_refuses_a_bad_inventory(tmp_path: Path) -> None:
    override = {"gateway": {"prot": 9000, "allow_from": ["10.10.22.999/24"]}, "llamcpp": {"port": 1}}
    lines = refusals(tmp_path, {"appliance_services_override": override}, {"gatway_embed": {"hosts": {"box1": None}}})
    assert lines == [
        "group gatway_embed is no service; rename it to gateway_embed in the inventory",
        "box1: appliance_services_override.gateway.allow_from is ['10.10.22.999/24']; write a list of networks such as "
        "[10.10.22.0/24, 192.0.2.7/32]",
        "box1: appliance_services_override.gateway.prot is not in the catalog; write port",
        "box1: appliance_services_override.llamcpp is not in the catalog; write llamacpp",
    ]


def test_the_playbook_refuses_a_taken_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        override = {"llamacpp": {"port": port}} | {
            "gateway": {"port": 28800, "listeners": {"observability": {"port": 28801}}},
            "gateway_embed": {"port": 28802},
        }
        # The host's Python is not asked for where each release brings its own.
        brought = {"appliance_python": "/nowhere/python3", "release_python_archive": "python.tar.gz"}
        (line,) = refusals(tmp_path, {"appliance_services_override": override, **brought})
    assert f"box1: port {port} is held by pid {os.getpid()} (" in line


def test_the_playbook_refuses_a_missing_python(tmp_path: Path) -> None:
    (line,) = refusals(tmp_path, {"appliance_python": str(tmp_path / "python3")})
    assert f"no Python 3.11 or newer at {tmp_path / 'python3'} (none); install one" in line


def test_the_shipped_inventory_of_a_mac_passes() -> None:
    """The other two are played: by test_site.py and tests/hosts/test_lan.py."""
    command = ["adhoc", "all", "-i", "inventories/mac", "--playbook-dir", "playbooks", "-m", "ansible.builtin.assert"]
    passes = "that='appliance_catalog | catalog_problems(groups, hostvars) == []'"
    done = subprocess.run(
        [sys.executable, "-m", "ansible", *command, "-a", passes],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
