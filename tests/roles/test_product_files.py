"""The module product_files, called as Ansible calls it: files are written together or not at all, edits are kept."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.ansible_run import ROOT, run_module

MODULE = ROOT / "roles/product/library/product_files.py"
GATEWAY = Path(sys.executable).parent / "gateway"

TOKEN = "a-token-for-this-test"
ALIASES = '{"default": "echo:model"}\n'
OWN = '{"default": "echo:mine"}\n'
BACKENDS = """backends:
  echo@box:
    {class: echo, base_url: "http://127.0.0.1:9/v1", supported_capabilities: [chat]}
"""


class Host:
    """A directory with the gateway's files, as a run of the module leaves it."""

    judge: Path | str = "true"  # GATEWAY where its refusals are what is tested

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, check_mode: bool = False, **options: Any) -> dict[str, Any]:
        """The module's answer; no secret may be in it."""
        env = options.pop("env", f"# settings\nGATEWAY_BEARER_TOKEN='{TOKEN}'\n")
        files = [
            {"name": ".env", "secret": env, "operator": True},
            {"name": "model_aliases.json", "content": options.pop("aliases", ALIASES), "operator": True},
            {"name": "backends.yaml", "content": options.pop("backends", BACKENDS)},
        ]
        product = {
            "path": str(self.path),
            "files": files,
            "setting": "gateway_config_overwrite",
            "check": [str(self.judge), "check", "--env-file", f"{self.path}/.env"],
            "environment": {
                "GATEWAY_BACKENDS_PATH": f"{self.path}/backends.yaml",
                "MODEL_ALIASES_PATH": f"{self.path}/model_aliases.json",
                "REQUEST_LOG_PATH": f"{self.path.parent}/requests.jsonl",
            },
            **options,
        }
        arguments = {
            "state": product.pop("state", "present"),
            "products": [product],
            "_ansible_check_mode": check_mode,
            "_ansible_diff": True,
        }
        answer = run_module(MODULE, arguments)
        assert TOKEN not in str(answer)
        return answer

    def text(self, name: str = "model_aliases.json") -> str:
        return (self.path / name).read_text()

    def content(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.path.iterdir()}


def warning(answer: dict[str, Any]) -> str:
    """The one warning, out of the envelope in which a module of ansible-core 2.19 sends it."""
    (envelope,) = answer["warnings"]
    message: str = envelope["event"]["msg"]
    return message


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "app")


@pytest.fixture
def written(host: Host) -> Host:
    assert host.run()["changed"]
    return host


def test_all_files_are_written_once(written: Host) -> None:
    assert sorted(written.content()) == [".env", ".written.json", "backends.yaml", "model_aliases.json"]
    assert written.text("backends.yaml") == BACKENDS
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in written.path.iterdir()}
    assert modes == {".env": 0o640, ".written.json": 0o600, "backends.yaml": 0o640, "model_aliases.json": 0o640}
    assert not written.run()["changed"]
    assert not written.run(check_mode=True)["changed"]


def test_a_dry_run_writes_nothing_and_shows_all_but_secrets(host: Host) -> None:
    dry = host.run(check_mode=True)
    assert dry["changed"]
    assert not host.path.exists()
    secret, aliases, backends = dry["diff"]
    assert secret == {"prepared": f"{host.path}/.env: other values, not shown, of: GATEWAY_BEARER_TOKEN\n"}
    assert (aliases["before"], aliases["after"]) == ("", ALIASES)
    assert backends["after"] == BACKENDS


def test_a_mode_that_was_changed_is_put_right(written: Host) -> None:
    (written.path / ".env").chmod(0o644)
    assert written.run(check_mode=True)["changed"]
    assert written.run()["changed"]
    assert stat.S_IMODE((written.path / ".env").stat().st_mode) == 0o640


def test_an_unedited_file_follows_its_source(written: Host) -> None:
    assert written.run(aliases=OWN)["changed"]
    assert written.text() == OWN
    assert written.run()["changed"]
    assert written.text() == ALIASES


def test_an_edited_file_is_kept_and_the_difference_shown(written: Host) -> None:
    (written.path / "model_aliases.json").write_text(OWN)
    kept = written.run()
    assert (kept["changed"], kept["kept"]) == (False, ["model_aliases.json"])
    assert written.text() == OWN
    advice = "edited on the host and kept; -e gateway_config_overwrite=model_aliases.json replaces it"
    assert advice in warning(kept)
    assert f"-{OWN}+{ALIASES}".strip() in warning(kept)


def test_an_edited_file_is_replaced_when_that_is_asked_for(written: Host) -> None:
    (written.path / "model_aliases.json").write_text(OWN)
    replaced = written.run(overwrite=["model_aliases.json"])
    assert (replaced["changed"], replaced["kept"]) == (True, [])
    assert written.text() == ALIASES
    assert not written.run()["changed"]


def test_a_file_that_was_there_first_is_kept(host: Host) -> None:
    host.path.mkdir()
    (host.path / "model_aliases.json").write_text(OWN)
    assert host.run()["kept"] == ["model_aliases.json"]
    assert host.text() == OWN


def test_a_file_edited_to_what_is_wanted_is_ours_again(written: Host) -> None:
    (written.path / "model_aliases.json").write_text(OWN)
    assert not written.run(aliases=OWN)["changed"]
    assert written.run()["changed"]
    assert written.text() == ALIASES


def test_a_rendered_file_is_never_kept(written: Host) -> None:
    (written.path / "backends.yaml").write_text("edited")
    done = written.run()
    assert (done["changed"], done["kept"]) == (True, [])
    assert written.text("backends.yaml") == BACKENDS


def test_an_edited_secret_file_is_kept_and_only_names_are_shown(written: Host) -> None:
    edited = "# mine\nGATEWAY_BEARER_TOKEN='the-operators-own-token'\nMETRICS_ENABLED=false\n"
    (written.path / ".env").write_text(edited)
    kept = written.run()
    assert (kept["changed"], kept["kept"]) == (False, [".env"])
    assert written.text(".env") == edited
    assert "the-operators-own-token" not in json.dumps(kept)
    assert warning(kept).endswith("other values, not shown, of: GATEWAY_BEARER_TOKEN, METRICS_ENABLED")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"aliases": "{"}, "model_aliases.json: line 1: not JSON"),
        ({"env": "GATEWAY_BEARER_TOKEN=abc\n"}, "GATEWAY_BEARER_TOKEN is 3 characters long"),
        ({"backends": BACKENDS.replace("base_url", "base_ulr")}, "base_ulr"),
    ],
)
def test_what_the_gateway_refuses_is_not_written(written: Host, options: dict[str, Any], reason: str) -> None:
    before = written.content()
    written.judge = GATEWAY
    refused = written.run(**{"aliases": OWN, **options})
    assert refused["failed"]
    assert reason in refused["msg"]
    assert ".staged-" not in refused["msg"]
    assert refused["msg"].endswith("Nothing was written, and what runs is left as it was.")
    assert written.content() == before


def test_a_file_that_was_edited_and_broken_is_refused_though_nothing_is_to_be_written(written: Host) -> None:
    (written.path / "model_aliases.json").write_text("{")
    written.judge = GATEWAY
    assert f"{written.path}/model_aliases.json: line 1: not JSON" in written.run()["msg"]


def test_what_has_passed_the_check_is_not_checked_again(host: Host, tmp_path: Path) -> None:
    accepts, refuses, env = tmp_path / "accepts", tmp_path / "refuses", tmp_path / "env"
    for program, status in ((accepts, 0), (refuses, 1)):
        program.write_text(f"#!/bin/sh\nexit {status}\n")
        program.chmod(0o755)
    env.symlink_to(accepts)
    host.judge = env
    assert host.run()["changed"]
    accepts.write_text(refuses.read_text())
    assert not host.run()["changed"]
    assert host.run(aliases=OWN)["failed"]
    accepts.write_text("#!/bin/sh\n")
    assert host.run(aliases=OWN)["changed"]
    env.unlink()
    env.symlink_to(refuses)  # another release
    assert host.run(aliases=OWN)["failed"]


def test_only_files_of_the_operators_can_be_overwritten(written: Host) -> None:
    refused = written.run(overwrite=["backends.yaml"])
    said = "gateway_config_overwrite: backends.yaml is not a file of the operator's; there are .env, model_aliases.json"
    assert said in refused["msg"]


def test_a_record_that_is_not_json_is_refused_in_one_line(written: Host) -> None:
    (written.path / ".written.json").write_text("{")
    refused = written.run()
    assert refused["failed"]
    assert len(refused["msg"].splitlines()) == 1


def test_removal(written: Host) -> None:
    assert written.run(state="absent", check_mode=True)["changed"]
    assert len(written.content()) == 4
    assert written.run(state="absent")["changed"]
    assert not written.path.exists()
    assert not written.run(state="absent")["changed"]


def test_removal_keeps_what_was_edited(written: Host) -> None:
    (written.path / "model_aliases.json").write_text(OWN)
    removed = written.run(state="absent")
    assert (removed["changed"], removed["kept"]) == (True, ["model_aliases.json"])
    assert sorted(written.content()) == [".written.json", "model_aliases.json"]
    assert not written.run(state="absent")["changed"]
