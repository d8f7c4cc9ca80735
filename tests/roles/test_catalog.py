"""Listeners and backends follow from the catalog, at all three levels of override."""

import io
import json
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from catalog import OPTIONS, SILENCE, SMOKE, address, backends, chosen, listeners, smoke_requests
from gateway.backends.records import BackendRecord, Capability
from preflight import BACKEND_OPTIONS

from tests.support.ansible_run import ROOT
from tests.support.services import CATALOG, EXPECTED
from tests.support.services import listeners as with_port


def test_the_catalog_is_what_was_written_by_hand() -> None:
    derived = {
        key: {name: place["port"] for name, place in with_port(entry)}
        for key, entry in CATALOG.items()
        if "url" not in entry
    }
    assert derived == {key: expected.ports for key, expected in EXPECTED.items()}


def test_every_listener_of_a_host_is_named() -> None:
    found = listeners(CATALOG, ["gateway", "llamacpp"])
    assert [(item["service"], item["name"], item["port"]) for item in found] == [
        ("gateway", "api", 8800),
        ("gateway", "observability", 8801),
        ("llamacpp", "api", 8088),
    ]
    assert found[1] == {
        "service": "gateway",
        "name": "observability",
        "port": 8801,
        "bind": "127.0.0.1",
        "allow_from": [],
        "user": "gateway",
        "unit": "gateway",
        "health": "/readyz",
    }


def test_a_listener_is_open_only_when_somebody_is_allowed() -> None:
    opened = {"gateway": CATALOG["gateway"] | {"allow_from": ["10.10.22.0/24"]}}
    assert [(item["bind"], item["allow_from"]) for item in listeners(opened, ["gateway"])] == [
        ("0.0.0.0", ["10.10.22.0/24"]),
        ("127.0.0.1", []),
    ]


def test_one_backend_per_host_of_the_group_local_by_loopback_remote_by_address() -> None:
    hostvars = {
        "mini": {"appliance_services": CATALOG},
        "studio": {"appliance_services": CATALOG, "ansible_host": "10.10.22.20"},
        "ada2": {"appliance_services": CATALOG | {"llamacpp": CATALOG["llamacpp"] | {"port": 8090}}},
    }
    groups = {"gateway": ["mini"], "gateway_embed": ["mini"], "llamacpp": ["studio", "ada2"]}
    own = {key: entry for key, entry in CATALOG.items() if "url" not in entry}
    made = backends(own, groups, hostvars, "mini")["backends"]
    assert {name: backend["base_url"] for name, backend in made.items()} == {
        "gateway_embed@mini": "http://127.0.0.1:8802/v1",
        "llamacpp@studio": "http://10.10.22.20:8088/v1",
        "llamacpp@ada2": "http://ada2:8090/v1",
    }
    assert made["llamacpp@studio"] == {
        "class": "llamacpp",
        "protocol": "llamacpp",
        "base_url": "http://10.10.22.20:8088/v1",
        "description": CATALOG["llamacpp"]["description"],
        "supported_capabilities": ["chat", "completions"],
        "concurrency_limits": {"chat": 4, "completions": 4},
        "health": {"liveness": "/health", "readiness": "/health"},
        "optional": False,
    }


def test_what_an_entry_may_say_of_its_backend_reaches_the_gateway() -> None:
    assert set(BACKEND_OPTIONS) == set(OPTIONS)
    assert set(OPTIONS) <= BackendRecord.model_fields.keys()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "box1"),
        ({"ansible_host": "10.10.22.20"}, "10.10.22.20"),
        ({"ansible_host": "10.10.22.20", "appliance_address": "192.0.2.7"}, "192.0.2.7"),
        ({"appliance_address": "2001:db8::7"}, "[2001:db8::7]"),
    ],
)
def test_address_of_a_host(variables: dict[str, str], expected: str) -> None:
    assert address({"box1": variables}, "box1") == expected


def test_the_smoke_test_asks_every_class_of_backend_once() -> None:
    hosts = ["box1", "box2"]
    hostvars = {host: {"appliance_services": CATALOG} for host in hosts}
    document = backends(CATALOG, {"gateway_embed": ["box1"], "llamacpp": hosts}, hostvars, "box1")
    asked = [(request["path"], request["body"].get("model")) for request in smoke_requests(document, CATALOG)]
    assert asked == [
        ("/v1/models", None),
        ("/v1/embeddings", "gateway_embed"),
        ("/v1/chat/completions", "llamacpp"),
        ("/v1/completions", "llamacpp"),
    ]


def test_there_is_a_smoke_request_for_each_capability() -> None:
    assert set(SMOKE) == set(get_args(Capability))
    with wave.open(io.BytesIO(SILENCE.encode("ascii"))) as sound:
        assert (sound.getnframes(), sound.getframerate()) == (0x1100 // 2, 11025)


ELSEWHERE = {
    "description": "vLLM of the other team",
    "url": "https://gpu1.example:8000/",
    "health": "/health",
    "backend": CATALOG["llamacpp"]["backend"] | {"class": "vllm", "api_key": "${VLLM_API_KEY}", "optional": True},
}


def test_a_server_of_others_is_a_backend_and_listens_nowhere() -> None:
    services = CATALOG | {"vllm": ELSEWHERE}
    hostvars = {"mini": {"appliance_services": services}}
    document = backends(services, {"gateway": ["mini"], "llamacpp": []}, hostvars, "mini")
    (made,) = document["backends"].values()
    assert list(document["backends"]) == ["vllm@vllm"]
    assert listeners(services, ["vllm"]) == []
    assert (made["base_url"], made["api_key"]) == ("https://gpu1.example:8000/v1", "${VLLM_API_KEY}")
    assert BackendRecord.model_validate(made | {"api_key": "k"})
    assert [request["path"] for request in smoke_requests(document, services)] == ["/v1/models"]
    needed = services | {"vllm": ELSEWHERE | {"backend": ELSEWHERE["backend"] | {"optional": False}}}
    assert len(smoke_requests(document, needed)) == 3


def test_a_unix_socket_is_a_listener_without_a_port() -> None:
    entry = {**CATALOG["gateway_embed"], "socket": "run/api.sock"}
    del entry["port"], entry["allow_from"]
    assert listeners({"gateway_embed": entry}, ["gateway_embed"], "/srv/lib") == [
        {
            "service": "gateway_embed",
            "name": "api",
            "socket": "/srv/lib/gateway-embed/run/api.sock",
            "user": "gateway-embed",
            "unit": "gateway-embed",
            "health": "/health",
        }
    ]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["all"], ["gateway", "llamacpp"]),
        (["install-llamacpp"], ["llamacpp"]),
        (["setup-gateway", "verify"], ["gateway"]),
        (["preflight"], []),
    ],
)
def test_tags_choose_services(tags: list[str], expected: list[str]) -> None:
    assert chosen(["gateway", "llamacpp"], tags) == expected


def test_installing_one_service_removes_none() -> None:
    assert chosen(["gateway", "llamacpp"], ["install-llamacpp"], ["setup"]) == []


INVENTORY = """
all:
  children:
    gateway: {hosts: {box1: }}
    llamacpp: {hosts: {box1: }, children: {fast: {hosts: {box2: , box3: }}}}
"""
SEEN = (
    "[appliance_services.llamacpp.port,"
    " groups.all | sort | map('extract', hostvars, ['appliance_services', 'llamacpp', 'port']) | list,"
    " (appliance_services | backends(groups, hostvars, 'box1')).backends.values() | map(attribute='base_url') | list]"
)


def test_the_nearest_level_of_override_wins(tmp_path: Path) -> None:
    """Each host but the first has one level more; all are seen alike from everywhere."""
    (tmp_path / "hosts.yml").write_text(INVENTORY)
    for path, port in {"group_vars/all": 9001, "group_vars/fast": 9002, "host_vars/box3": 9003}.items():
        target = tmp_path / f"{path}.yml"
        target.parent.mkdir(exist_ok=True)
        target.write_text(yaml.safe_dump({"appliance_services_override": {"llamacpp": {"port": port}}}))
    ports = {"box1": 9001, "box2": 9002, "box3": 9003}
    urls = ["http://127.0.0.1:9001/v1", "http://box2:9002/v1", "http://box3:9003/v1"]
    assert seen(tmp_path) == {host: [port, list(ports.values()), urls] for host, port in ports.items()}


def seen(inventory: Path) -> dict[str, Any]:
    """What real ansible makes of SEEN on each host of the inventory."""
    command = [sys.executable, "-m", "ansible", "adhoc", "all", "--playbook-dir", "playbooks", "--one-line"]
    done = subprocess.run(
        [*command, "-i", str(inventory), "-m", "ansible.builtin.debug", "-a", f"msg={{{{ {SEEN} }}}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.partition(" | SUCCESS => ") for line in done.stdout.splitlines()]
    return {host.strip(): json.loads(answer)["msg"] for host, found, answer in lines if found}
