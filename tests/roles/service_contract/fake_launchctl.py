#!/usr/bin/env python3
"""A launchctl and launchd for tests on machines without macOS: the system domain, kept in the directory FAKE_LAUNCHD.

It reproduces what makes the real one hard to drive: bootout is asynchronous (36 while the process stops), bootstrap
gives 5 for a label that is loaded, disabled, draining or has just gone, bootout gives 3 and print 113 for unknown ones,
kill gives 3 for one without a process. Each loaded job has a keeper, a process of this file that starts the job again,
as launchd does for KeepAlive.
"""

import json
import os
import plistlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any, NoReturn

DIRECTORY = Path(os.environ["FAKE_LAUNCHD"])
LINGER_SECONDS = 0.4
REFUSED = 5, "Bootstrap failed: 5: Input/output error"


def beside(target: str, kind: str) -> Path:
    """A file of the job that `system/<label>` or its label names."""
    return DIRECTORY / f"{target.rpartition('/')[2]}.{kind}"


def read_job(target: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(beside(target, "job").read_text()))
    except FileNotFoundError:
        return None


def write_job(label: str, **job: Any) -> None:
    temporary = beside(label, "new")
    temporary.write_text(json.dumps(job))
    temporary.rename(beside(label, "job"))


def fail(code: int, message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)


def bootstrap(domain: str, path: str) -> None:
    try:
        plist = plistlib.loads(Path(path).read_bytes())
    except (OSError, plistlib.InvalidFileException):
        fail(*REFUSED)
    label = plist["Label"]
    if read_job(label) or beside(label, "disabled").exists():
        fail(*REFUSED)
    if beside(label, "gone").exists():  # once, however late that is asked for
        beside(label, "gone").unlink()
        fail(*REFUSED)
    environment = plist.get("EnvironmentVariables", {})
    write_job(label, state="spawn scheduled", path=path, keeper=None, pid=None, environment=environment)
    argv = [sys.executable, __file__, "keep", label, path]
    null = subprocess.DEVNULL
    subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, start_new_session=True)


def bootout(target: str) -> None:
    job = read_job(target)
    if job is None:
        fail(3, "Boot-out failed: 3: No such process")
    while job is not None and job["keeper"] is None:  # it is just being started
        time.sleep(0.01)
        job = read_job(target)
    if job is not None:
        os.kill(job["keeper"], signal.SIGTERM)
        if job["pid"]:
            fail(36, "Boot-out failed: 36: Operation now in progress")


def kill(name: str, target: str) -> None:
    job = read_job(target)
    if job is None or not job["pid"]:
        fail(3, "No process to signal.")
    os.kill(job["pid"], signal.Signals[name])


def show(target: str) -> None:
    job = read_job(target)
    if job is None:
        fail(113, f'Could not find service "{target}" in domain for system')
    environment = "".join(f"\t\t{key} => {value}\n" for key, value in job["environment"].items())
    print(f"{target} = {{\n\tactive count = 1\n\tpath = {job['path']}\n\ttype = LaunchDaemon")
    print(f"\tstate = {job['state']}\n\n\tenvironment = {{\n{environment}\t}}\n")
    if job["pid"]:
        print(f"\tpid = {job['pid']}")
    print("\tlast exit code = (never exited)\n}")


def show_disabled(_domain: str) -> None:
    lines = [f'\t\t"{path.stem}" => disabled\n' for path in sorted(DIRECTORY.glob("*.disabled"))]
    print(f"\tdisabled services = {{\n{''.join(lines)}\t}}")


def enable(target: str) -> None:
    beside(target, "disabled").unlink(missing_ok=True)


def disable(target: str) -> None:
    beside(target, "disabled").touch()


def keep(label: str, path: str) -> None:
    """Run the job until SIGTERM; a job without KeepAlive waits for its time, which never comes in a test."""
    plist = plistlib.loads(Path(path).read_bytes())
    environment = plist.get("EnvironmentVariables", {})
    child: subprocess.Popen[bytes] | None = None
    stopping = Event()

    def record(state: str) -> None:
        pid = child.pid if child and child.poll() is None else None
        write_job(label, state=state, path=path, keeper=os.getpid(), pid=pid, environment=environment)

    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    record("not running")
    while not stopping.wait(0.02):
        if plist.get("KeepAlive") and child is None:
            with Path(plist["StandardOutPath"]).open("ab") as out, Path(plist["StandardErrorPath"]).open("ab") as err:
                child = subprocess.Popen(
                    plist["ProgramArguments"], env=environment, stdout=out, stderr=err, cwd=plist["WorkingDirectory"]
                )
            record("running")
        elif child is not None and child.poll() is not None:
            child = None
            record("spawn scheduled")
            time.sleep(plist.get("ThrottleInterval", 10))
    record("SIGTERMed")
    if child is not None and child.poll() is None:
        child.terminate()
        try:
            child.wait(plist.get("ExitTimeOut", 20))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    time.sleep(LINGER_SECONDS)  # launchd takes its time to forget a job
    beside(label, "gone").touch()
    beside(label, "job").unlink()


COMMANDS: dict[str, Callable[..., None]] = {
    "bootstrap": bootstrap,
    "bootout": bootout,
    "kill": kill,
    "print": show,
    "print-disabled": show_disabled,
    "enable": enable,
    "disable": disable,
    "keep": keep,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
