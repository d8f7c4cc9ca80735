"""Fixtures: the appliance, the gateway's wheel alone, and SDKs that point at them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.clients import servers, upstream
from tests.clients.alone import fronting, program, record
from tests.clients.appliance import Appliance, existing, provisioned
from tests.clients.recorder import Recorder, recording
from tests.clients.upstream import ToolCaller
from tests.support.upstream import running

__all__ = ["program"]


@pytest.fixture(scope="session")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """The appliance that the environment names, else one that is provisioned for this session."""
    if there := existing():
        yield there
        return
    with provisioned(tmp_path_factory.mktemp("appliance")) as appliance:
        yield appliance


@pytest.fixture
def client(appliance: Appliance) -> Iterator[openai.OpenAI]:
    with appliance.sdk() as client:
        yield client


@pytest.fixture(scope="session")
def caller() -> Iterator[ToolCaller]:
    """A backend that answers with tool calls."""
    with running(ToolCaller()) as caller:
        yield caller


@pytest.fixture(scope="session")
def llamacpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """llama.cpp with a template that offers tools."""
    with servers.llamacpp(tmp_path_factory.mktemp("llamacpp")) as url:
        yield url


@pytest.fixture(scope="session")
def mlx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    """mlx_lm.server, with a relay before it."""
    with servers.mlx(tmp_path_factory.mktemp("mlx")) as url, recording(url) as recorder:
        yield recorder


@pytest.fixture(scope="session")
def litellm(llamacpp: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    """LiteLLM's proxy in front of llama.cpp, with a relay before it."""
    place = tmp_path_factory.mktemp("litellm")
    with servers.litellm(place, llamacpp, servers.SMOLLM2) as url, recording(url) as recorder:
        yield recorder


@pytest.fixture(scope="session")
def fleet(
    program: Path,
    caller: ToolCaller,
    llamacpp: str,
    mlx: Recorder,
    litellm: Recorder,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Appliance]:
    """One gateway in front of real model servers of several kinds and the scripted one."""
    records = {
        "tools@here": record("tools", caller.url),
        "llamacpp@here": record("llamacpp", llamacpp, "chat", "completions", protocol="llamacpp"),
        "mlx@here": record("mlx", mlx.url, "chat", "completions"),
        "litellm@here": record("litellm", litellm.url, "chat", "completions", api_key=servers.LITELLM_KEY),
    }
    aliases = {
        "default": {"backend": "tools", "model": upstream.MODEL},
        "apple": {"backend": "mlx", "model": servers.MLX_MODEL},
        "proxied": {"backend": "litellm", "model": servers.LITELLM_MODEL},
        "real": {"backend": "llamacpp", "model": servers.SMOLLM2},
    }
    with fronting(program, tmp_path_factory.mktemp("fleet"), records, aliases) as gateway:
        yield gateway


@pytest.fixture
def fleet_client(fleet: Appliance) -> Iterator[openai.OpenAI]:
    with fleet.sdk() as client:
        yield client


@pytest.fixture(scope="session")
def alone(program: Path, caller: ToolCaller, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """The gateway of the wheel in front of the backend that calls tools."""
    place = tmp_path_factory.mktemp("alone")
    with fronting(program, place, {"tools@here": record("tools", caller.url)}) as gateway:
        yield gateway


@pytest.fixture
def sdk(alone: Appliance) -> Iterator[openai.OpenAI]:
    with alone.sdk() as client:
        yield client
