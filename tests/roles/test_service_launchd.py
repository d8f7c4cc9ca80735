"""The module launchd_service against a simulated launchd: the states that the contract test does not come through."""

from __future__ import annotations

import json
import os
import plistlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ansible_run import run_module
from tests.support.waiting import until

ROLE = Path(__file__).parents[2] / "roles/service"
LABEL = "com.example.job"
SLEEPER = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('ready', 'w'); time.sleep(600)"


class Mac:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.plist = directory / f"{LABEL}.plist"
        (directory / "launchd").mkdir()
        (directory / "bin").mkdir()
        (directory / "bin/launchctl").symlink_to(Path(__file__).parent / "service_contract/fake_launchctl.py")
        self.environment = {
            **os.environ,
            "PATH": f"{directory / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "FAKE_LAUNCHD": str(directory / "launchd"),
        }

    def content(self, program: str = SLEEPER, **keys: Any) -> str:
        plist = {
            "Label": LABEL,
            "ProgramArguments": [sys.executable, "-c", program],
            "EnvironmentVariables": {"APPLIANCE_REVISION": "@revision@"},
            "WorkingDirectory": str(self.directory),
            "StandardOutPath": str(self.directory / "out.log"),
            "StandardErrorPath": str(self.directory / "err.log"),
            "KeepAlive": True,
            "ThrottleInterval": 1,
            "ExitTimeOut": 2,
            **keys,
        }
        return plistlib.dumps(plist).decode()

    def module(self, **arguments: Any) -> dict[str, Any]:
        """The result of one task, run as Ansible runs a module but without its way to a host."""
        job = {"name": LABEL, "path": str(self.plist), "stop_timeout": 5, **arguments}
        of_all: dict[str, Any] = {name: job.pop(name) for name in ("state", "_ansible_check_mode") if name in job}
        return run_module(ROLE / "library/launchd_service.py", {"services": [job], **of_all}, self.environment)

    def present(self, **keys: Any) -> dict[str, Any]:
        return self.module(content=self.content(**keys))

    def launchctl(self, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(["launchctl", *arguments], env=self.environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def loaded(self) -> bool:
        return self.launchctl("print", f"system/{LABEL}")[0] == 0

    def pid(self) -> int:
        """The job's process; 0 when there is none."""
        try:
            return json.loads((self.directory / f"launchd/{LABEL}.job").read_text())["pid"] or 0
        except FileNotFoundError:
            return 0


@pytest.fixture
def mac(tmp_path: Path) -> Iterator[Mac]:
    mac = Mac(tmp_path)
    yield mac
    if mac.loaded():
        mac.launchctl("bootout", f"system/{LABEL}")
        until(lambda: not mac.loaded())


def test_check_mode_shows_a_diff_and_does_nothing(mac: Mac) -> None:
    result = mac.module(content=mac.content(), _ansible_check_mode=True)
    assert result["changed"] and LABEL in result["diff"][0]["after"]
    assert not mac.plist.exists() and not mac.loaded()


def test_a_job_that_somebody_disabled_is_enabled(mac: Mac) -> None:
    mac.launchctl("disable", f"system/{LABEL}")
    assert mac.present()["changed"]
    assert until(mac.pid)
    assert not mac.present()["changed"]
    mac.launchctl("disable", f"system/{LABEL}")
    before = mac.pid()
    assert mac.present()["changed"]
    assert mac.pid() == before  # enabling needs no restart


def test_a_process_that_ignores_sigterm_is_waited_for(mac: Mac) -> None:
    mac.present(program=STUBBORN)
    until((mac.directory / "ready").exists)
    stubborn = mac.pid()
    assert mac.present()["changed"]
    assert until(mac.pid) != stubborn
    with pytest.raises(ProcessLookupError):
        os.kill(stubborn, 0)


def test_a_job_that_starts_by_the_clock_need_not_run(mac: Mac) -> None:
    assert mac.present(KeepAlive=False, StartInterval=3600)["changed"]
    assert mac.loaded() and not mac.pid()
    assert not mac.present(KeepAlive=False, StartInterval=3600)["changed"]


def test_log_is_made_before_the_job_for_its_group_alone(mac: Mac) -> None:
    log = mac.directory / "err.log"
    assert mac.module(content=mac.content(), logs=[str(log)])["changed"]
    assert log.stat().st_mode & 0o777 == 0o640


def test_a_job_that_launchd_refuses_is_one_message(mac: Mac) -> None:
    result = mac.module(content="this is no property list")
    assert "Bootstrap failed: 5: Input/output error" in result["msg"]
    assert "Traceback" not in result["msg"]
