"""The product roles, played by Ansible on this machine below a temporary directory.

The roles `service` and `release`, which have tests of their own, are replaced: the one writes down what it was given,
the other selects this interpreter's environment, so that `gateway check` is the real one.
"""

from __future__ import annotations

import json
import re
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.ansible_run import ROOT, Run, ansible_playbook

SHIPPED = (ROOT / "files/model_aliases.json").read_text()
OWN_ALIASES = '{"aliases": {"default": {"backend": "llamacpp", "model": "mine"}}}\n'
SECRET = "http://secret-proxy.example"

INVENTORY = """
all:
  hosts:
    box1: {ansible_connection: local}
    box2: {ansible_host: 10.1.2.3}
  children:
    gateway: {hosts: {box1: }}
    gateway_embed: {hosts: {box1: }}
    llamacpp: {hosts: {box1: , box2: }}
"""

PLAY = """
- hosts: box1
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: "{{ product }}"
        tasks_from: "{{ item }}"
      loop: "{{ entry_points[product] }}"
"""

# What site.yml calls of each role, in this order; gateway_embed has nothing to refuse.
ENTRY_POINTS = {"gateway": ["preflight", "main"], "llamacpp": ["preflight", "main"], "gateway_embed": ["main"]}
REMOVE: dict[str, Any] = {"entry_points": {product: ["main"] for product in ENTRY_POINTS}, "product_state": "absent"}

DOUBLES = {
    "service/tasks/main.yml": """
- ansible.builtin.copy:
    dest: "{{ appliance_root }}/{{ service_name }}.json"
    content: >-
      {{ {'state': service_state | default('present'), 'argv': service_argv | default([]),
          'environment': service_environment | default({}), 'reads': service_reads | default([]),
          'reloads': service_reloads | default([]),
          'writable': service_writable | default([]), 'peers': service_peers | default([]),
          'stop_timeout': service_stop_timeout | default(15),
          'exceptions': service_sandbox_exceptions | default([])} | to_json }}
""",
    "release/tasks/main.yml": """
- ansible.builtin.file:
    path: "{{ appliance_lib }}/{{ release_name }}"
    state: directory
- ansible.builtin.file:
    src: "{{ omit if release_state | default('present') == 'absent' else environment_of_the_tests }}"
    path: "{{ appliance_lib }}/{{ release_name }}/env"
    state: "{{ 'absent' if release_state | default('present') == 'absent' else 'link' }}"
""",
}


class Project:
    """A checkout's playbook directory and an inventory of its own; everything on the host is below `root`."""

    def __init__(self, path: Path) -> None:
        self.root = path / "root"
        self.inventory = path / "inventory"
        self.app = self.root / "var/lib/gateway/app"
        self.token_file = self.inventory / "secrets/gateway_token"
        self._path = path
        self.root.mkdir()
        (self.inventory / "files").mkdir(parents=True)
        (self.inventory / "hosts.yml").write_text(INVENTORY)
        (path / "group_vars").symlink_to(ROOT / "playbooks/group_vars")
        (path / "play.yml").write_text(PLAY)
        for name, text in DOUBLES.items():
            (path / "doubles" / name).parent.mkdir(parents=True, exist_ok=True)
            (path / "doubles" / name).write_text(text)

    def play(self, product: str = "gateway", *arguments: str, **variables: Any) -> Run:
        """One run that ends well."""
        return self._run(product, *arguments, **variables).succeeded()

    def refusal(self, product: str = "gateway", *arguments: str, **variables: Any) -> str:
        """The message of the task that ends a run, without Ansible's YAML around it."""
        run = self._run(product, *arguments, **variables)
        assert run.status != 0, run.output
        return re.sub(r"\s+", " ", run.output[run.output.index("fatal: [box1]") :])

    def _run(self, product: str, *arguments: str, **variables: Any) -> Run:
        """As loud as it can be. No secret may be in its output."""
        given = {
            "product": product,
            "entry_points": ENTRY_POINTS,
            "appliance_mode": "rootless",
            "appliance_root": str(self.root),
            "ansible_python_interpreter": sys.executable,
            "environment_of_the_tests": sys.prefix,
            **variables,
        }
        loud = ("-e", json.dumps(given), "-vvv", "--diff", *arguments)
        run = ansible_playbook(self._path / "play.yml", *loud, inventory=self.inventory / "hosts.yml")
        for secret in self._secrets(variables):
            assert secret not in run.output
        return run

    def _secrets(self, variables: dict[str, Any]) -> list[str]:
        token = self.token_file.read_text().strip() if self.token_file.exists() else None
        chosen = variables.get("gateway_bearer_token")
        return [secret for secret in (token, chosen, SECRET) if secret]

    def definition(self, service: str = "gateway") -> dict[str, Any]:
        """What the role `service` was given."""
        content: dict[str, Any] = json.loads((self.root / f"{service}.json").read_text())
        return content


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("ANSIBLE_ROLES_PATH", f"{tmp_path / 'doubles'}:{ROOT / 'roles'}")
    return Project(tmp_path)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_gateway_from_a_bare_host_to_a_converged_one(project: Project) -> None:
    dry = project.play("gateway", "--check")
    assert dry.changed > 0
    assert not project.token_file.exists()
    assert list(project.root.iterdir()) == []

    project.play()
    token = project.token_file.read_text()
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}\n", token)
    assert mode(project.token_file) == 0o600
    env = (project.app / ".env").read_text().splitlines()
    assert env[-1] == f"GATEWAY_BEARER_TOKEN='{token.strip()}'"
    assert (project.app / "model_aliases.json").read_text() == SHIPPED
    for name in (".env", "model_aliases.json", "token_policies.json", "backends.yaml"):
        assert mode(project.app / name) == 0o640
    assert mode(project.app) == 0o755
    assert yaml.safe_load((project.app / "backends.yaml").read_text()) == {"backends": BACKENDS}
    assert project.definition() == gateway_definition(project.root / "var/lib/gateway")

    assert project.play().changed == 0
    assert project.play("gateway", "--check").changed == 0
    assert project.token_file.read_text() == token


LLAMACPP = {
    "class": "llamacpp",
    "protocol": "llamacpp",
    "description": "llama.cpp with a small model inside, the default on every machine",
    "supported_capabilities": ["chat", "completions"],
    "concurrency_limits": {"chat": 4, "completions": 4},
    "health": {"liveness": "/health", "readiness": "/health"},
    "optional": False,
}
BACKENDS = {
    "gateway_embed@box1": {
        "class": "gateway_embed",
        "base_url": "http://127.0.0.1:8802/v1",
        "description": "Sentence embeddings on the CPU, no network needed",
        "supported_capabilities": ["embeddings"],
        "concurrency_limits": {"embeddings": 4},
        "health": {"liveness": "/health", "readiness": "/health"},
        "optional": True,
    },
    "llamacpp@box1": {**LLAMACPP, "base_url": "http://127.0.0.1:8088/v1"},
    "llamacpp@box2": {**LLAMACPP, "base_url": "http://10.1.2.3:8088/v1"},
}


def gateway_definition(home: Path) -> dict[str, Any]:
    return {
        "state": "present",
        "argv": [f"{home}/env/bin/gateway", "serve", "--env-file", f"{home}/app/.env"],
        "environment": {
            "GATEWAY_HOST": "127.0.0.1",
            "GATEWAY_PORT": "8800",
            "OBSERVABILITY_HOST": "127.0.0.1",
            "OBSERVABILITY_PORT": "8801",
            "GATEWAY_SHUTDOWN_TIMEOUT_SEC": "60",
            "GATEWAY_BACKENDS_PATH": f"{home}/app/backends.yaml",
            "MODEL_ALIASES_PATH": f"{home}/app/model_aliases.json",
            "GATEWAY_TOKEN_POLICIES_PATH": f"{home}/app/token_policies.json",
            "REQUEST_LOG_PATH": f"{home}/data/requests.jsonl",
            "GATEWAY_DB_PATH": f"{home}/data/gateway.sqlite",
            "UI_IMAGE_DIR": f"{home}/data/ui_images",
        },
        "reads": [f"{home}/env", f"{home}/app/.env"],
        "reloads": [f"{home}/app/{name}" for name in ("model_aliases.json", "token_policies.json", "backends.yaml")],
        "writable": [f"{home}/data", f"{home}/tools"],
        "peers": ["10.1.2.3"],
        "stop_timeout": 70,
        "exceptions": [],
    }


def test_what_the_operator_chose_for_the_gateway(project: Project) -> None:
    hosts = project.inventory / "hosts.yml"
    hosts.write_text(INVENTORY.replace("10.1.2.3", "box2.example"))
    (project.inventory / "files/model_aliases.json").write_text(OWN_ALIASES)
    token = "it's-a-token-of-the-operator"
    project.play(
        gateway_bearer_token=token,
        gateway_settings={"MAX_REQUEST_BYTES": 5000, "METRICS_ENABLED": False, "IP_ALLOWLIST": "10.0.0.0/8"},
        gateway_shutdown_timeout=5,
        appliance_services_override={"gateway": {"port": 18800, "allow_from": ["10.0.0.0/8"]}},
    )
    assert (project.app / ".env").read_text().splitlines()[1:] == [
        r"GATEWAY_BEARER_TOKEN='it\'s-a-token-of-the-operator'",
        "IP_ALLOWLIST='10.0.0.0/8'",
        "MAX_REQUEST_BYTES='5000'",
        "METRICS_ENABLED='false'",
    ]
    assert not project.token_file.exists()
    assert (project.app / "model_aliases.json").read_text() == OWN_ALIASES
    definition = project.definition()
    environment = definition["environment"]
    assert (environment["GATEWAY_HOST"], environment["GATEWAY_PORT"]) == ("0.0.0.0", "18800")
    assert environment["OBSERVABILITY_HOST"] == "127.0.0.1"
    assert definition["stop_timeout"] == 15
    assert definition["peers"] == ["any"]  # a backend that is known by name may be at any address


def test_settings_that_are_made_elsewhere_are_refused_before_anything_is_installed(project: Project) -> None:
    settings = {"GATEWAY_PORT": 9000, "MAX_REQUEST_BYTES": 1, "GATEWAY_TLS_KEY_PATH": "/etc/key.pem"}
    refusal = project.refusal(gateway_settings=settings)
    assert "GATEWAY_PORT, GATEWAY_TLS_KEY_PATH: set the token by gateway_bearer_token, listeners by" in refusal
    assert list(project.root.iterdir()) == []


def test_edits_on_the_host_are_kept_until_the_operator_says_otherwise(project: Project) -> None:
    project.play()
    aliases, env = project.app / "model_aliases.json", project.app / ".env"
    before = env.read_text()
    aliases.write_text(OWN_ALIASES)
    env.write_text(before + f"SOME_PROXY='{SECRET}'\n")
    kept = project.play()
    assert kept.changed == 0
    assert (aliases.read_text(), env.read_text()) == (OWN_ALIASES, before + f"SOME_PROXY='{SECRET}'\n")
    assert "model_aliases.json: edited on the host and kept" in kept.output
    assert "-e gateway_config_overwrite=model_aliases.json" in kept.output
    assert "other values, not shown, of: SOME_PROXY" in kept.output

    project.token_file.write_text("another-token-of-this-test\n")
    replaced = project.play("gateway", "-e", "gateway_config_overwrite=.env,model_aliases.json")
    assert replaced.changed == 1
    assert aliases.read_text() == SHIPPED
    assert env.read_text().endswith("GATEWAY_BEARER_TOKEN='another-token-of-this-test'\n")
    assert "other values, not shown, of: GATEWAY_BEARER_TOKEN" in replaced.output
    assert before.split("'")[1] not in replaced.output


def test_what_the_gateway_refuses_is_not_written_and_nothing_restarts(project: Project) -> None:
    project.play()
    before = {path.name: path.read_bytes() for path in project.app.iterdir()}
    definition = project.definition()
    override = {"gateway": {"port": 18800}, "llamacpp": {"port": 18088}}
    refusal = project.refusal(gateway_bearer_token="abc", appliance_services_override=override)
    assert "GATEWAY_BEARER_TOKEN is 3 characters long" in refusal
    assert {path.name: path.read_bytes() for path in project.app.iterdir()} == before
    assert project.definition() == definition


def test_removal_of_the_gateway_keeps_what_was_edited(project: Project) -> None:
    project.play()
    (project.app / "model_aliases.json").write_text(OWN_ALIASES)
    project.play(**REMOVE)
    assert project.definition()["state"] == "absent"
    assert not (project.root / "var/lib/gateway/env").exists()
    assert sorted(path.name for path in project.app.iterdir()) == [".written.json", "model_aliases.json"]
    assert project.play("gateway", "--check", **REMOVE).changed == 0


def test_llamacpp(project: Project) -> None:
    assert project.play("llamacpp", "--check").changed > 0
    assert list(project.root.iterdir()) == []

    project.play("llamacpp")
    home = project.root / "var/lib/llamacpp"
    definition = project.definition("llamacpp")
    launcher = f"{home}/app/llamacpp_server.py"
    assert definition["argv"] == [
        *(f"{home}/env/bin/python", "-I", launcher, "--host", "127.0.0.1", "--port", "8088"),
        *("--model-name", "smollm2-135m-instruct", "--context-size", "4096", "--parallel", "4"),
    ]
    assert definition["reads"] == [f"{home}/env", launcher]
    assert (definition["exceptions"], definition["writable"]) == ([], [])
    assert project.play("llamacpp", "--check").changed == 0

    tuned = {"llamacpp_threads": 3, "llamacpp_parallel": 2, "llamacpp_context_size": 512}
    named = {"llamacpp_model_path": "/srv/models/own.gguf", "llamacpp_model_name": "own"}
    project.play("llamacpp", **tuned, **named)
    assert project.definition("llamacpp")["argv"][7:] == [
        *("--model-name", "own", "--context-size", "512", "--parallel", "2"),
        *("--threads", "3", "--model", "/srv/models/own.gguf"),
    ]
    project.play("llamacpp", **REMOVE)
    assert list(home.iterdir()) == []


def test_llamacpp_says_what_to_type_when_its_library_is_missing(project: Project, tmp_path: Path) -> None:
    python = tmp_path / "python-without-libgomp"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    refusal = project.refusal("llamacpp", appliance_python=str(python))
    assert "box1: llama.cpp needs libgomp.so.1; type: sudo apt-get install libgomp1" in refusal
    assert list(project.root.iterdir()) == []


def test_the_embedder(project: Project) -> None:
    assert project.play("gateway_embed", "--check").changed > 0
    assert list(project.root.iterdir()) == []

    project.play("gateway_embed")
    home = project.root / "var/lib/gateway-embed"
    definition = project.definition("gateway_embed")
    command = [f"{home}/env/bin/gateway-embed", "--host", "127.0.0.1", "--port", "8802"]
    assert definition["argv"] == command
    assert (definition["reads"], definition["exceptions"]) == ([f"{home}/env"], ["procfs"])

    project.play("gateway_embed", gateway_embed_threads=2)
    assert project.definition("gateway_embed")["argv"] == [*command, "--threads", "2"]
    project.play("gateway_embed", **REMOVE)
    assert list(home.iterdir()) == []
