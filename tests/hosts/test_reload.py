"""An alias more, as an operator adds one: the gateway goes on, and so does a stream that is under way."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ansible_run import ROOT, ansible_playbook
from tests.support.remote_client import Caller
from tests.support.waiting import until

TALE = {"prompt": "Once upon a time", "ignore_eos": True}


@pytest.fixture
def provision(inventory: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Provisions the gateway with these aliases beside the shipped ones; without them again in the end."""
    file = inventory / "files/model_aliases.json"

    def play() -> None:
        converge = ROOT / "molecule/default/converge.yml"
        ansible_playbook(converge, "--tags", "install-gateway", inventory=inventory).succeeded()

    def provision(aliases: dict[str, Any]) -> None:
        shipped = json.loads((ROOT / "files/model_aliases.json").read_text())["aliases"]
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"aliases": shipped | aliases}))
        play()

    yield provision
    file.unlink()
    play()


def test_a_new_alias_is_served_by_the_same_process_while_a_stream_goes_on(
    host: Any, inside: Caller, provision: Callable[[dict[str, Any]], None]
) -> None:
    gateway, model = (host.service(unit).systemd_properties["MainPID"] for unit in ("gateway", "llamacpp"))
    stream = inside.stream("/v1/completions", {"model": "default", "max_tokens": 500, "stream": True, **TALE})
    assert stream.stdout is not None
    assert stream.stdout.readline().startswith("data: {")
    host.check_output(f"kill -STOP {model}")  # so that the stream cannot end before the reload
    try:
        provision({"tale": {"backend": "llamacpp", "model": "smollm2-135m-instruct", "max_tokens_cap": 4}})
    finally:
        host.check_output(f"kill -CONT {model}")
    rest, _ = stream.communicate(timeout=120)
    assert rest.rstrip().endswith("data: [DONE]")
    assert '"error"' not in rest

    request = {"model": "tale", "max_tokens": 99, **TALE}
    until(lambda: inside.post("/v1/completions", request)[0] == 200)  # the next probe finds the model again
    _, answer = inside.post("/v1/completions", request)
    assert answer["usage"]["completion_tokens"] == 4
    assert host.service("gateway").systemd_properties["MainPID"] == gateway
