"""Model files on a host: brought, resumed, renamed, reported; the hosts of one play are the cases."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from models import model_manifests, models_of

from tests.support.ansible_run import Run, play_cases

# A connection that is local and does not say so: what it needs is copied, as to a host elsewhere.
ELSEWHERE = """
from ansible.plugins.connection.local import DOCUMENTATION, Connection as Local
DOCUMENTATION = DOCUMENTATION.replace("name: local", "name: elsewhere")
class Connection(Local):
    transport = "elsewhere"
"""
SMALL, LARGE = b"small model", bytes(70 << 20)  # one piece of the transfer, and more than one


def entry(file: str, content: bytes, source: Path) -> dict[str, Any]:
    source.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return {"file": file, "source": str(source), "sha256": digest, "bytes": len(content)}


class Hosts:
    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "connections").mkdir()
        (place / "connections/elsewhere.py").write_text(ELSEWHERE)

    def directory(self, name: str) -> Path:
        return self.place / name / "models"

    def play(self, cases: dict[str, list[dict[str, Any]]], *arguments: str, connection: str = "local") -> Run:
        given = {
            name: {"ansible_connection": connection, "models_path": str(self.directory(name)), "models_files": files}
            for name, files in cases.items()
        }
        plugins = str(self.place / "connections")
        tasks = [{"include_role": {"name": "models"}}]
        return play_cases(self.place, given, tasks, *arguments, ANSIBLE_CONNECTION_PLUGINS=plugins)


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


def test_models_are_brought_once_renamed_and_reported(hosts: Hosts, tmp_path: Path) -> None:
    small = entry("small.gguf", SMALL, tmp_path / "small.bin")
    bare, moved, broken = ("bare", "moved", "broken")
    for name, files in {
        moved: {"earlier.gguf": SMALL, "own.gguf": b"the operator's"},
        broken: {"small.gguf": b"smaller one"},
    }.items():
        hosts.directory(name).mkdir(parents=True)
        for file, content in files.items():
            (hosts.directory(name) / file).write_bytes(content)
    (hosts.directory(moved) / ".0000.part").write_bytes(b"of nobody")
    cases = {name: [small] for name in (bare, moved, broken)}
    before = {path for path in tmp_path.rglob("*") if "models" in path.parts}
    assert hosts.play(cases, "--check").succeeded().changed == len(cases)
    assert {path for path in tmp_path.rglob("*") if "models" in path.parts} == before

    run = hosts.play(cases).succeeded()
    assert run.changed == len(cases)
    own = hosts.directory(moved) / "own.gguf"
    assert f"{own} is in no manifest and kept; to remove it type: rm {own}" in " ".join(run.output.split())
    for name in cases:
        found = {path.name: path for path in hosts.directory(name).iterdir()}
        assert found.pop("own.gguf", own).read_bytes() == b"the operator's"
        assert sorted(found) == [".models.json", "small.gguf"]
        assert found["small.gguf"].read_bytes() == SMALL
        assert found["small.gguf"].stat().st_mode & 0o777 == 0o644
    assert hosts.play(cases).succeeded().changed == 0


def test_a_transfer_to_another_host_comes_in_pieces_and_goes_on(hosts: Hosts, tmp_path: Path) -> None:
    large = entry("large.gguf", LARGE, tmp_path / "large.bin")
    wrong = {**entry("wrong.gguf", SMALL, tmp_path / "wrong.bin"), "sha256": "0" * 64}
    vast = {**entry("vast.gguf", SMALL, tmp_path / "vast.bin"), "bytes": 1 << 60}
    short = {**entry("short.gguf", SMALL, tmp_path / "short.bin"), "bytes": 5}
    spoilt = entry("spoilt.gguf", SMALL, tmp_path / "spoilt.bin")
    for name, files, part in (("resumed", large, LARGE[: 66 << 20]), ("spoilt", spoilt, b"other")):
        hosts.directory(name).mkdir(parents=True)
        (hosts.directory(name) / f".{files['sha256']}.part").write_bytes(part)
    cases = {"whole": large, "resumed": large, "wrong": wrong, "vast": vast, "short": short, "spoilt": spoilt}
    run = hosts.play({name: [files] for name, files in cases.items()}, connection="elsewhere")
    said = " ".join(run.output.split())
    for name in ("whole", "resumed"):
        assert (hosts.directory(name) / "large.gguf").read_bytes() == LARGE
    # Three pieces for two hosts: what was there already was not sent again.
    assert said.count("large.gguf: 100 % at the host") == 2
    assert said.count("large.gguf: 91 % at the host") == 1
    small = hashlib.sha256(SMALL).hexdigest()
    assert f"wrong.gguf: {tmp_path}/wrong.bin has the sha256 {small}, not {'0' * 64}; correct the digest" in said
    assert "the models vast.gguf need 1152921504606 MB; make room there" in said
    assert f"short.gguf: {tmp_path}/short.bin has {len(SMALL)} bytes, not 5; correct the size" in said
    assert "spoilt.gguf came with the sha256" in said and f"not {small}; run again" in said
    assert "Traceback" not in said
    for name in ("wrong", "vast", "short", "spoilt"):
        assert [path for path in hosts.directory(name).glob("*") if path.suffix != ".json"] == []
    assert hosts.play({"spoilt": [spoilt]}, connection="elsewhere").succeeded().changed == 1


def test_the_operators_manifest_of_a_name_comes_first(tmp_path: Path) -> None:
    for directory, source in (("own", "https://a.example/x/tiny.gguf"), ("shipped", "b")):
        (tmp_path / directory).mkdir()
        manifest = {"source": source, "sha256": "0" * 64, "bytes": 1, "licence": "MIT", "for": ["llamacpp"]}
        (tmp_path / directory / "tiny.yml").write_text(yaml.safe_dump(manifest))
    (tmp_path / "own/broken.yml").write_text("a: [")
    manifests = model_manifests(str(tmp_path / name) for name in ("own", "absent", "shipped"))
    assert "expected the node content" in manifests.pop("broken")
    assert models_of(manifests, "llamacpp") == [
        {"file": "tiny.gguf", "source": "https://a.example/x/tiny.gguf", "sha256": "0" * 64, "bytes": 1}
    ]
    assert models_of(manifests, "gateway") == []
