"""The product roles, played by Ansible on this machine below a temporary directory; a case is a host of each play.

The roles `service` and `release`, which have tests of their own, are replaced: the one writes down what it was given,
the other selects this interpreter's environment, so that `gateway check` is the real one. The tests are steps in the
order of this file, and each fixture is one run after the other.
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
from catalog import backends

from tests.support.ansible_run import ROOT, STAND_IN, Run, ansible_playbook
from tests.support.services import CATALOG, EXPECTED

SHIPPED = (ROOT / "files/model_aliases.json").read_text()
OWN_ALIASES = '{"aliases": {"default": {"backend": "llamacpp", "model": "mine"}}}\n'
SECRET = "http://secret-proxy.example"
TOKEN, LATER_TOKEN = "it's-a-token-of-the-operator", "another-token-of-this-test"

# `tuned` is what an operator chose, `misplaced` and `lacking` are refused; box2 is elsewhere and is not played.
CASES: dict[str, dict[str, Any]] = {
    "box1": {},
    "tuned": {
        "gateway_bearer_token": TOKEN,
        "gateway_settings": {
            "MAX_REQUEST_BYTES": 5000,
            "METRICS_ENABLED": False,
            "OLLAMA_BASE_URL": "http://by-name.example:11434",
        },
        "gateway_shutdown_timeout": 5,
        "appliance_services_override": {"gateway": {"port": 18800, "allow_from": ["10.0.0.0/8"]}},
        "llamacpp_threads": 3,
        "llamacpp_parallel": 2,
        "llamacpp_context_size": 512,
        "llamacpp_model_path": "/srv/models/own.gguf",
        "llamacpp_model_name": "own",
        "gateway_embed_threads": 2,
    },
    "misplaced": {
        "gateway_settings": {"GATEWAY_PORT": 9000, "MAX_REQUEST_BYTES": 1, "GATEWAY_TLS_KEY_PATH": "/etc/key.pem"}
    },
    "lacking": {"appliance_python": "/bin/false"},
}
GROUPS = {"gateway": ["box1"], "gateway_embed": ["box1"], "llamacpp": ["box1", "box2"]}

PREFLIGHT = [role for role in EXPECTED if (ROOT / f"roles/{role}/tasks/preflight.yml").exists()]
# What playbooks call of the roles, in this order.
PLAY = """
- hosts: all:!box2
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: "{{ item }}", tasks_from: preflight}
      loop: "{{ preflight }}"
    - ansible.builtin.include_role: {name: "{{ item }}", public: true}
      loop: "{{ product_names }}"
    - ansible.builtin.include_role: {name: product}
"""

STAND_INS = {
    "service/tasks/main.yml": """
- stand_in:
    path: "{{ appliance_root }}/{{ service_name }}.json"
    text: >-
      {{ {'state': service_state | default('present'), 'argv': service_argv | default([]),
          'environment': service_environment | default({}), 'reads': service_reads | default([]),
          'reloads': service_reloads | default([]),
          'writable': service_writable | default([]), 'peers': service_peers | default([]),
          'stop_timeout': service_stop_timeout | default(15),
          'exceptions': service_sandbox_exceptions | default([])} | to_json }}
  loop: "{{ service_names }}"
  loop_control: {loop_var: service_name}
""",
    "release/tasks/main.yml": """
- stand_in:
    path: "{{ appliance_lib }}/{{ release_directory }}/env"
    target: "{{ omit if release_state | default('present') == 'absent' else environment_of_the_tests }}"
  loop: "{{ release_names }}"
  loop_control: {loop_var: release_name}
""",
}


class Host:
    """What the runs left of one host, below a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lib = root / "var/lib"
        self.app = self.lib / "gateway/app"

    def definition(self, service: str = "gateway") -> dict[str, Any]:
        """What the role `service` was given."""
        content: dict[str, Any] = json.loads((self.root / f"{service}.json").read_text())
        return content

    def files(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.app.iterdir()}


class Project:
    """A checkout's playbook directory and an inventory of its own, with a directory for each host."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.hosts = {name: Host(place / "hosts" / name) for name in CASES}
        self.inventory = place / "inventory"
        self.token_file = self.inventory / "secrets/gateway_token"
        (self.inventory / "files").mkdir(parents=True)
        (place / "group_vars").symlink_to(ROOT / "playbooks/group_vars")
        (place / "play.yml").write_text(PLAY)
        for name, text in STAND_INS.items():
            (place / "roles" / name).parent.mkdir(parents=True)
            (place / "roles" / name).write_text(text)
        self.secrets = {SECRET, TOKEN, LATER_TOKEN}

    def play(self, *names: str, check: bool = False, remove: bool = False, **changes: dict[str, Any]) -> Run:
        """One run on these hosts, with changes to their variables and as loud as it can be; it shows no secret."""
        common = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "appliance_mode": "rootless",
            "environment_of_the_tests": sys.prefix,
            "preflight": [] if remove else PREFLIGHT,
            "product_names": list(EXPECTED),
            "product_state": "absent" if remove else "present",
        }
        hosts = {
            name: common | {"appliance_root": str(host.root)} | CASES[name] | changes.get(name, {})
            for name, host in self.hosts.items()
        }
        hosts["box2"] = {"ansible_host": "10.1.2.3"}
        groups = {group: {"hosts": dict.fromkeys(members)} for group, members in GROUPS.items()}
        file = self.inventory / "hosts.yml"
        file.write_text(json.dumps({"all": {"hosts": hosts, "children": groups}}))
        loud = ["-vvv", "--diff", "--limit", ",".join(names), *(["--check"] if check else [])]
        environment = STAND_IN | {"ANSIBLE_ROLES_PATH": f"{self._place / 'roles'}:{ROOT / 'roles'}"}
        run = ansible_playbook(self._place / "play.yml", *loud, inventory=file, environment=environment)
        self.secrets |= {self.token_file.read_text().strip()} if self.token_file.exists() else set()
        assert [secret for secret in self.secrets if secret in run.output] == []
        return run


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("products"))


@pytest.fixture(scope="module")
def box1(project: Project) -> Host:
    return project.hosts["box1"]


@pytest.fixture(scope="module")
def tuned(project: Project) -> Host:
    return project.hosts["tuned"]


@pytest.fixture(scope="module")
def dry(project: Project) -> Run:
    return project.play("box1", "tuned", check=True).succeeded()


@pytest.fixture(scope="module")
def first(project: Project, dry: Run) -> Run:
    return project.play(*CASES)


@pytest.fixture(scope="module")
def edited(project: Project, first: Run) -> Run:
    """The same again, after edits on the host box1 and in the inventory's files."""
    host = project.hosts["box1"]
    (host.app / "model_aliases.json").write_text(OWN_ALIASES)
    with (host.app / ".env").open("a") as env:
        env.write(f"SOME_PROXY='{SECRET}'\n")
    return project.play("box1", "tuned").succeeded()


def said(run: Run, host: str) -> str:
    """The message of the task that ends a run, without Ansible's YAML around it."""
    return re.sub(r"\s+", " ", run.said(host))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_check_mode_of_a_bare_host_writes_nothing(project: Project, dry: Run) -> None:
    assert all(dry.counts(name)["changed"] for name in ("box1", "tuned"))
    assert not project.token_file.exists()
    assert not (project._place / "hosts").exists()


def test_the_gateways_files_and_definition(project: Project, box1: Host, first: Run) -> None:
    assert first.counts("box1")["failed"] == 0, first.output
    token = project.token_file.read_text()
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}\n", token)
    assert mode(project.token_file) == 0o600
    assert box1.files()[".env"].splitlines()[-1] == f"GATEWAY_BEARER_TOKEN='{token.strip()}'"
    assert box1.files()["model_aliases.json"] == SHIPPED
    for name in (".env", "model_aliases.json", "token_policies.json", "backends.yaml"):
        assert mode(box1.app / name) == 0o640
    assert mode(box1.app) == 0o755
    hostvars: dict[str, Any] = {"box1": {"appliance_services": CATALOG}}
    hostvars["box2"] = hostvars["box1"] | {"ansible_host": "10.1.2.3"}
    document = backends(CATALOG, GROUPS, hostvars, "box1")
    assert yaml.safe_load(box1.files()["backends.yaml"]) == document
    assert set(document["backends"]) == {"gateway_embed@box1", "llamacpp@box1", "llamacpp@box2"}
    assert box1.definition() == gateway_definition(box1.lib / "gateway")


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


def test_what_the_operator_chose_for_the_gateway(tuned: Host, first: Run) -> None:
    assert tuned.files()[".env"].splitlines()[1:] == [
        r"GATEWAY_BEARER_TOKEN='it\'s-a-token-of-the-operator'",
        "MAX_REQUEST_BYTES='5000'",
        "METRICS_ENABLED='false'",
        "OLLAMA_BASE_URL='http://by-name.example:11434'",
    ]
    definition = tuned.definition()
    environment = definition["environment"]
    assert (environment["GATEWAY_HOST"], environment["GATEWAY_PORT"]) == ("0.0.0.0", "18800")
    assert environment["OBSERVABILITY_HOST"] == "127.0.0.1"
    assert definition["stop_timeout"] == 15
    assert definition["peers"] == ["any"]  # a backend that is known by name may be at any address


def test_definitions_of_the_backends(box1: Host, tuned: Host, first: Run) -> None:
    home = box1.lib / "llamacpp"
    launcher = f"{home}/app/llamacpp_server.py"
    definition = box1.definition("llamacpp")
    assert definition["argv"] == [
        *(f"{home}/env/bin/python", "-I", launcher, "--host", "127.0.0.1", "--port", "8088"),
        *("--model-name", "smollm2-135m-instruct", "--context-size", "4096", "--parallel", "4"),
    ]
    assert definition["reads"] == [f"{home}/env", launcher]
    assert (definition["exceptions"], definition["writable"]) == ([], [])
    assert tuned.definition("llamacpp")["argv"][7:] == [
        *("--model-name", "own", "--context-size", "512", "--parallel", "2"),
        *("--threads", "3", "--model", "/srv/models/own.gguf"),
    ]
    home = box1.lib / "gateway-embed"
    definition = box1.definition("gateway_embed")
    assert definition["argv"] == [f"{home}/env/bin/gateway-embed", "--host", "127.0.0.1", "--port", "8802"]
    assert (definition["reads"], definition["exceptions"]) == ([f"{home}/env"], ["procfs"])
    assert tuned.definition("gateway_embed")["argv"][5:] == ["--threads", "2"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("misplaced", "GATEWAY_PORT, GATEWAY_TLS_KEY_PATH: set the token by gateway_bearer_token, listeners by"),
        ("lacking", "lacking: llama.cpp needs libgomp.so.1; type: sudo apt-get install libgomp1"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_installed(
    project: Project, first: Run, name: str, reason: str
) -> None:
    assert reason in said(first, name)
    assert not project.hosts[name].root.exists()


def test_edits_on_the_host_are_kept_and_named(box1: Host, edited: Run) -> None:
    assert edited.changed == 0
    assert box1.files()["model_aliases.json"] == OWN_ALIASES
    assert box1.files()[".env"].endswith(f"SOME_PROXY='{SECRET}'\n")
    assert "model_aliases.json: edited on the host and kept" in edited.output
    assert "-e gateway_config_overwrite=model_aliases.json" in edited.output
    assert "other values, not shown, of: SOME_PROXY" in edited.output


def test_edits_are_replaced_when_asked_for_and_what_the_gateway_refuses_is_not_written(
    project: Project, box1: Host, tuned: Host, edited: Run
) -> None:
    (project.inventory / "files/model_aliases.json").write_text(aliases := OWN_ALIASES.replace("mine", "theirs"))
    project.token_file.unlink()
    overwritten = {"gateway_config_overwrite": ".env,model_aliases.json", "gateway_bearer_token": LATER_TOKEN}
    moved = {"gateway": {"port": 18801}, "llamacpp": {"port": 18088}}
    refused = {"gateway_bearer_token": "abc", "appliance_services_override": moved}
    before, definition = tuned.files(), tuned.definition()
    run = project.play("box1", "tuned", box1=overwritten, tuned=refused)

    assert (run.counts("box1")["failed"], run.counts("box1")["changed"]) == (0, 1)
    assert box1.files()["model_aliases.json"] == aliases
    assert box1.files()[".env"].endswith(f"GATEWAY_BEARER_TOKEN='{LATER_TOKEN}'\n")
    assert "other values, not shown, of: GATEWAY_BEARER_TOKEN" in run.output
    assert not project.token_file.exists(), "the operator's own is used"

    assert "GATEWAY_BEARER_TOKEN is 3 characters long" in said(run, "tuned")
    assert (tuned.files(), tuned.definition()) == (before, definition)


def test_removal_keeps_what_was_edited(project: Project, box1: Host, tuned: Host, edited: Run) -> None:
    (tuned.app / "model_aliases.json").write_text(SHIPPED + "\n")
    project.play("box1", "tuned", remove=True).succeeded()
    for service in EXPECTED:
        assert box1.definition(service)["state"] == "absent"
        assert list((box1.lib / CATALOG[service]["unit"]).iterdir()) == []
    assert not (tuned.lib / "gateway/env").exists()
    assert sorted(tuned.files()) == [".written.json", "model_aliases.json"]
    assert not project.token_file.exists(), "removal makes no token"
    assert project.play("box1", "tuned", check=True, remove=True).succeeded().changed == 0
