"""Role `service` keeps one contract under supervisor, under systemd in a container and under a simulated launchd."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.roles.service_contract.machines import Machine, MacMachine, SystemdMachine
from tests.support.podman_hosts import eventually, why_unavailable

MACHINES: dict[str, type[Machine]] = {"supervisor": Machine, "launchd": MacMachine, "systemd": SystemdMachine}


@pytest.fixture(scope="module", params=list(MACHINES))
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine after one run of the role, with two healthy services."""
    if request.param == "systemd" and (reason := why_unavailable()):
        pytest.skip(reason)
    machine = MACHINES[request.param](tmp_path_factory.mktemp(request.param))
    try:
        bare = machine.play("present", "--check")
        assert bare["failed"] == 0 and not machine.has(machine.definition("llamacpp")), machine.output
        assert machine.play()["changed"] > 0
        machine.first_definition = machine.read(machine.definition("llamacpp"))
        yield machine
    finally:
        machine.close()


def test_both_services_answer(machine: Machine) -> None:
    assert machine.pid("llamacpp") and machine.pid("gateway_embed")


def test_a_second_run_changes_nothing(machine: Machine) -> None:
    before = machine.pid("llamacpp")
    assert machine.play()["changed"] == 0, machine.output
    assert machine.pid("llamacpp") == before


def test_check_mode_of_a_converged_machine_reports_no_change(machine: Machine) -> None:
    assert machine.play("present", "--check", "--diff")["changed"] == 0, machine.output


def test_the_environment_is_the_declared_one_alone(machine: Machine) -> None:
    environment = machine.ask("gateway_embed")["environment"]
    assert environment["GREETING"] == '100% "quoted", with $HOME and \\ in it'
    assert environment["HOME"].endswith("/var/lib/gateway-embed")
    assert environment["PATH"] == "/usr/local/bin:/usr/bin:/bin"
    assert "CANARY" not in environment


def test_a_change_of_what_it_reads_restarts_it_and_not_its_neighbour(machine: Machine) -> None:
    before, neighbour = machine.pid("llamacpp"), machine.pid("gateway_embed")
    machine.configure("llamacpp", "second")
    assert machine.play()["changed"] == 1, machine.output
    assert machine.pid("llamacpp") not in (0, before)
    assert machine.pid("gateway_embed") == neighbour


def test_a_run_that_died_before_its_restart_is_completed(machine: Machine) -> None:
    """The definition on disk is the wanted one, what runs is another."""
    before = machine.pid("llamacpp")
    machine.configure("llamacpp", "first")
    machine.interrupt("llamacpp", machine.first_definition)
    assert machine.play()["changed"] == 1, machine.output
    assert machine.pid("llamacpp") not in (0, before)
    assert machine.read(machine.definition("llamacpp")) == machine.first_definition


def test_a_change_of_what_it_can_read_again_is_told_to_the_same_process(machine: Machine) -> None:
    before = machine.pid("llamacpp")
    machine.tell("llamacpp", "second")
    assert machine.play("present", "--check")["changed"] == 1, machine.output
    assert machine.ask("llamacpp")["text"] == "first"
    assert machine.play()["changed"] == 1, machine.output
    eventually(lambda: machine.ask("llamacpp").get("text") == "second")
    assert machine.pid("llamacpp") == before
    assert machine.play()["changed"] == 0, machine.output


def test_a_killed_process_comes_back(machine: Machine) -> None:
    for _ in range(6):  # more often than systemd's default limit on starts
        before = machine.pid("llamacpp")
        machine.shell("kill", "-9", str(before))
        eventually(lambda: machine.pid("llamacpp") not in (0, before))  # noqa: B023 - called in this turn


def test_a_service_that_is_not_healthy_fails_with_its_log(machine: Machine) -> None:
    machine.configure("llamacpp", "fourth")
    server = machine.read(f"{machine.product}/server.py")
    machine.write(f"{machine.product}/server.py", "raise SystemExit('no model to load')")
    try:
        machine.play("present", "-e", "service_health_timeout=10", succeeds=False)
        assert "llamacpp" in machine.output and "is not healthy after 10 s" in machine.output
        assert "no model to load" in machine.output
    finally:
        machine.write(f"{machine.product}/server.py", server)
    eventually(lambda: machine.pid("llamacpp"))
    assert machine.play()["changed"] == 0, machine.output


def test_down_leaves_no_process(machine: Machine) -> None:
    pids = [machine.pid("llamacpp"), machine.pid("gateway_embed")]
    machine.run_playbook("down.yml")
    assert machine.pid("llamacpp") == machine.pid("gateway_embed") == 0
    assert all(machine.shell("kill", "-0", str(pid)).returncode for pid in pids)
    assert machine.has(machine.definition("llamacpp"))
    assert machine.run_playbook("down.yml")["changed"] == 0
    machine.play()
    assert machine.pid("llamacpp") and machine.pid("gateway_embed")


def test_removed_without_a_trace(machine: Machine) -> None:
    pid = machine.pid("llamacpp")
    machine.play("absent")
    assert machine.pid("llamacpp") == 0 and machine.shell("kill", "-0", str(pid)).returncode
    assert not machine.has(machine.definition("llamacpp"))
    assert machine.play("absent")["changed"] == 0, machine.output


def test_a_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60)
    deep.mkdir()
    machine = Machine(deep)
    machine.play(succeeds=False)
    assert "bytes too long for a unix socket: move the checkout to a shorter path" in machine.output


def test_supervisord_killed(tmp_path: Path) -> None:  # a short name: its directory holds a unix socket
    """It is replaced: its stale socket and pid file are in nobody's way; its orphans are ended by hand."""
    machine = Machine(tmp_path)
    machine.play()
    try:
        orphans = [machine.pid("llamacpp"), machine.pid("gateway_embed")]
        os.kill(int((tmp_path / ".appliance/run/supervisord.pid").read_text()), signal.SIGKILL)
        for orphan in orphans:
            os.kill(orphan, signal.SIGKILL)
        machine.play()
        assert machine.pid("llamacpp") not in (0, *orphans)
    finally:
        machine.close()
