"""Role `service` keeps one contract under supervisor, under systemd in a container and under a simulated launchd.

Each test plays once for all three machines, in the order of this file.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.roles.service_contract.machines import Machine, Machines, MacMachine, SystemdMachine
from tests.support.podman_hosts import why_unavailable
from tests.support.waiting import until


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """The machines after one run of the role, each with two healthy services."""
    kinds = [Machine, MacMachine, *([] if why_unavailable() else [SystemdMachine])]
    machines = Machines(tmp_path_factory.mktemp("m"), kinds)  # a short name: the directory holds a unix socket
    try:
        bare = machines.play("present", "--check")
        assert not any(counts["failed"] for counts in bare), machines.output
        assert not any(machine.has(machine.definition("llamacpp")) for machine in machines)
        assert all(counts["changed"] for counts in machines.play()), machines.output
        for machine in machines:
            machine.first_definition = machine.read(machine.definition("llamacpp"))
        yield machines
    finally:
        machines.close()


def test_both_services_answer_on_every_machine(machines: Machines) -> None:
    assert all(pid for machine in machines for pid in machine.pids())
    if reason := why_unavailable():
        pytest.skip(f"not tried under systemd: {reason}")


def test_the_environment_is_the_declared_one_alone(machines: Machines) -> None:
    for machine in machines:
        environment = machine.ask("gateway_embed")["environment"]
        assert environment["GREETING"] == '100% "quoted", with $HOME and \\ in it'
        assert environment["HOME"].endswith("/var/lib/gateway-embed")
        assert environment["PATH"] == "/usr/local/bin:/usr/bin:/bin"
        assert "CANARY" not in environment


def test_check_mode_of_a_converged_machine_reports_no_change(machines: Machines) -> None:
    assert not any(machines.changed("--check", "--diff")), machines.output


def test_a_change_of_what_it_reads_restarts_it_and_not_its_neighbour(machines: Machines) -> None:
    before = [machine.pids() for machine in machines]
    for machine in machines:
        machine.configure("llamacpp", "second")
    assert machines.changed() == [1] * len(machines), machines.output
    for machine, (pid, neighbour) in zip(machines, before, strict=True):
        assert machine.pid("llamacpp") not in (0, pid)
        assert machine.pid("gateway_embed") == neighbour


def test_a_run_that_died_before_its_restart_is_completed(machines: Machines) -> None:
    """The definition on disk is the wanted one, what runs is another."""
    before = [machine.pid("llamacpp") for machine in machines]
    for machine in machines:
        machine.configure("llamacpp", "first")
        machine.interrupt("llamacpp", machine.first_definition)
    assert machines.changed() == [1] * len(machines), machines.output
    for machine, pid in zip(machines, before, strict=True):
        assert machine.pid("llamacpp") not in (0, pid)
        assert machine.read(machine.definition("llamacpp")) == machine.first_definition


def test_a_change_of_what_it_can_read_again_is_told_to_the_same_process(machines: Machines) -> None:
    before = [machine.pids() for machine in machines]
    for machine in machines:
        machine.tell("llamacpp", "second")
    assert machines.changed("--check") == [1] * len(machines), machines.output
    assert all(machine.ask("llamacpp")["text"] == "first" for machine in machines)
    assert machines.changed() == [1] * len(machines), machines.output
    for machine in machines:
        until(lambda: machine.ask("llamacpp").get("text") == "second")  # noqa: B023 - called in this turn
    assert not any(machines.changed()), machines.output
    assert [machine.pids() for machine in machines] == before, "a run that changes nothing restarts nothing"


def test_a_killed_process_comes_back(machines: Machines) -> None:
    for _ in range(6):  # more often than systemd's default limit on starts
        before = [machine.pid("llamacpp") for machine in machines]
        for machine, pid in zip(machines, before, strict=True):
            machine.shell("kill", "-9", str(pid))
        for machine, pid in zip(machines, before, strict=True):
            until(lambda: machine.pid("llamacpp") not in (0, pid))  # noqa: B023 - called in this turn


def test_a_service_that_is_not_healthy_fails_with_its_log(machines: Machines) -> None:
    server = machines[0].read(f"{machines[0].product}/server.py")
    for machine in machines:
        machine.configure("llamacpp", "fourth")
        machine.write(f"{machine.product}/server.py", "raise SystemExit('no model to load')")
    try:
        machines.play("present", "-e", "service_health_timeout=5", services=["llamacpp"], succeeds=False)
        for machine in machines:
            said = machines.said(machine)
            assert "llamacpp" in said and "is not healthy after 5 s" in said
            assert "no model to load" in said
    finally:
        for machine in machines:
            machine.write(f"{machine.product}/server.py", server)
    for machine in machines:
        until(lambda: machine.pid("llamacpp"))  # noqa: B023 - called in this turn
    assert not any(machines.changed()), machines.output


def test_down_leaves_no_process(machines: Machines) -> None:
    before = [machine.pids() for machine in machines]
    machines.run_playbook("down.yml")
    for machine, pids in zip(machines, before, strict=True):
        assert machine.pids() == [0, 0]
        assert not any(machine.alive(pid) for pid in pids)
        assert machine.has(machine.definition("llamacpp"))
    assert not any(counts["changed"] for counts in machines.run_playbook("down.yml")), machines.output
    assert all(machines.changed()), machines.output
    assert all(machine.pid("llamacpp") for machine in machines)


def test_a_killed_supervisord_is_replaced(machines: Machines) -> None:
    """Its stale socket and pid file are in nobody's way; its orphans are ended by hand."""
    machine = machines[0]
    orphans = machine.pids()
    os.kill(int((machine.root / "run/supervisord.pid").read_text()), signal.SIGKILL)
    for orphan in orphans:
        os.kill(orphan, signal.SIGKILL)
    machines.changed("--limit", machine.manager)
    assert machine.pid("llamacpp") not in (0, *orphans)


def test_removed_without_a_trace(machines: Machines) -> None:
    before = [machine.pid("llamacpp") for machine in machines]
    machines.play("absent", services=["llamacpp"])
    for machine, pid in zip(machines, before, strict=True):
        assert machine.pid("llamacpp") == 0 and not machine.alive(pid)
        assert not machine.has(machine.definition("llamacpp"))
    again = machines.play("absent", services=["llamacpp"])
    assert not any(counts["changed"] for counts in again), machines.output
