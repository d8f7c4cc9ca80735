"""Two hosts of one class behind the gateway; one hangs or is cut off in the middle of a stream, and comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.clients.alone import fronting, record
from tests.support.podman_hosts import Fleet, Host, Network, podman, why_unavailable
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))

HERE = Path(__file__).parent
PORT = 8080
CHAT = {"model": "pair:pacer", "messages": [{"role": "user", "content": "Who are you?"}]}
# Seconds: so short that a test need not wait, so long that a busy machine is not taken for a dead host.
IMPATIENT = {
    "UPSTREAM_CONNECT_TIMEOUT_SEC": "4",
    "UPSTREAM_FIRST_BYTE_TIMEOUT_SEC": "8",
    "UPSTREAM_IDLE_TIMEOUT_SEC": "6",
    "HEALTH_CHECK_INTERVAL_SEC": "1",
    "HEALTH_CHECK_TIMEOUT_SEC": "4",
}


class Pair:
    """The hosts by their name, what they are on, and a client of the gateway before them."""

    def __init__(self, fleet: Fleet) -> None:
        self.network = fleet.network("models")
        self.hosts = {name: fleet.client(name, self.network) for name in ("one", "two")}
        self.addresses = {name: host.address(self.network) for name, host in self.hosts.items()}
        for host in self.hosts.values():
            serve(host)
        self.http = httpx.Client()

    def records(self) -> dict[str, dict[str, object]]:
        return {
            f"pair@{name}": record("pair", f"http://{address}:{PORT}/v1") for name, address in self.addresses.items()
        }

    def ask(self) -> tuple[int, str]:
        """Status, and the host that answered or the error."""
        answer = self.http.post("/chat/completions", json=CHAT)
        found = answer.json()
        return answer.status_code, found["choices"][0]["message"]["content"] if answer.is_success else str(found)

    @contextmanager
    def streaming(self) -> Iterator[tuple[str, Iterator[str]]]:
        """The host that streams, and the lines that follow its first event."""
        with self.http.stream("POST", "/chat/completions", json={**CHAT, "stream": True}) as response:
            assert response.status_code == 200
            lines = (line for line in response.iter_lines() if line)
            first = json.loads(next(lines).removeprefix("data: "))
            yield first["choices"][0]["delta"]["content"], lines

    def is_back(self, name: str) -> bool:
        """With the other host busy, a request goes to this one when it is taken for ready."""
        if self.ask()[0] != 200:  # not probed yet
            return False
        with self.streaming() as (busy, _):
            return busy == name or self.ask() == (200, name)


def serve(host: Host) -> None:
    copy = host.start("sh", "-c", "cat >/root/pacer.py")
    copy.communicate((HERE / "pacer.py").read_text())
    host.run(f"nohup python3 /root/pacer.py {PORT} >/root/log 2>&1 &")
    until(lambda: host.fetches("127.0.0.1", PORT))


@pytest.fixture(scope="module")
def pair(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    fleet = Fleet()
    try:
        pair = Pair(fleet)
        place = tmp_path_factory.mktemp("pair")
        with fronting(program, place, pair.records(), None, **IMPATIENT) as gateway, gateway.http() as pair.http:
            until(lambda: pair.is_back("one") and pair.is_back("two"))
            yield pair
    finally:
        fleet.close()


@contextmanager
def paused(host: Host, network: Network, address: str) -> Iterator[None]:
    """Its processes stand still; its kernel still takes connections."""
    podman("pause", host.name)
    try:
        yield
    finally:
        podman("unpause", host.name)


@contextmanager
def cut_off(host: Host, network: Network, address: str) -> Iterator[None]:
    """No packet reaches it, none comes back."""
    podman("network", "disconnect", network.name, host.name)
    try:
        yield
    finally:
        podman("network", "connect", "--ip", address, network.name, host.name)


@pytest.mark.parametrize("vanish", [paused, cut_off])
def test_a_host_vanishes_mid_stream_and_comes_back(pair: Pair, vanish: object) -> None:
    assert callable(vanish)
    with pair.streaming() as (name, lines):
        other = "two" if name == "one" else "one"
        with vanish(pair.hosts[name], pair.network, pair.addresses[name]):
            # The stream holds a slot of the vanished host, so that the next request goes to the other one.
            assert pair.ask() == (200, other)
            received = list(lines)
            assert "data: [DONE]" not in received
            assert '"error"' in received[-1]
            assert "pair" in received[-1]
            # It may be tried once more before it is known to be gone; then the other one serves all.
            assert {status for status, _ in (pair.ask() for _ in range(2))} <= {200, 503, 504}
            until(lambda: all(pair.ask() == (200, other) for _ in range(3)))
    until(lambda: pair.is_back(name))
