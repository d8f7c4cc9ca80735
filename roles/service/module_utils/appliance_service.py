"""What the modules for systemd, launchd and supervisor share: definitions, brought to one state, then healthy.

A definition names its revision, a hash of its text and of what the process reads at its start; each manager can tell
whether what it runs was started from that revision, so that a run that was interrupted is completed by the next one.
What the process reads again when it is told to has a hash of its own there, written only after it was told.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import pwd
import socket
import tempfile
import time
import xmlrpc.client
from abc import ABC, abstractmethod
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, NoReturn, Optional, Tuple
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule

REVISION = "@revision@"
LOADED = "@loaded@"
POLL_SECONDS = 0.1
TAIL_LINES = 15

STATE: Dict[str, Any] = {"type": "str", "choices": ["present", "stopped", "absent"], "default": "present"}
# One definition, in the list `services` of each module.
OPTIONS: Dict[str, Dict[str, Any]] = {
    "name": {"type": "str", "required": True},  # a unit without suffix, a job's label, a program
    "path": {"type": "path", "required": True},  # where the definition lies
    "content": {"type": "str"},  # its text; `@revision@` becomes the hash of it and of `reads`
    "reads": {"type": "list", "elements": "path", "default": []},  # what the process reads at its start
    "reloads": {"type": "list", "elements": "path", "default": []},  # what it reads again at SIGHUP, as `@loaded@`
    "directories": {  # created and kept before anything starts
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "path", "required": True},
            "mode": {"type": "str", "required": True},
            "owner": {"type": "str"},
            "group": {"type": "str"},
        },
    },
    "writable": {"type": "list", "elements": "path", "default": []},  # directories of `user`'s own
    "logs": {"type": "list", "elements": "path", "default": []},  # created for `user`
    "user": {"type": "str"},
    "health": {"type": "str"},  # an address that answers 200
    "health_timeout": {"type": "int", "default": 60},  # seconds
    "stop_timeout": {"type": "int", "default": 15},  # seconds that the process may take to stop
}
ARGUMENTS: Dict[str, Dict[str, Any]] = {
    "state": STATE,
    "services": {"type": "list", "elements": "dict", "required": True, "options": OPTIONS},
}
Options = Dict[str, Any]


class Definition(NamedTuple):
    """The text of a definition up to the hash of what is reloaded, that hash, the rest; the revision written in it."""

    head: str
    loaded: str
    tail: str
    revision: str

    @classmethod
    def of(cls, content: str, reads: List[str], reloads: List[str]) -> Definition:
        """Replace `@revision@` by the hash of `content` and what is in `reads`, `@loaded@` by that of `reloads`."""
        revision = _hash(content, reads)
        head, mark, tail = content.replace(REVISION, revision).partition(LOADED)
        return cls(head, _hash("", reloads) if mark else "", tail, revision)

    @property
    def text(self) -> str:
        return self.head + self.loaded + self.tail

    def runs_as(self, text: str) -> bool:
        """Whether a process that was started from `text` differs in nothing but what it can reload."""
        return text.startswith(self.head) and text.endswith(self.tail) and len(text) == len(self.text)


def _hash(content: str, paths: List[str]) -> str:
    digest = hashlib.sha256(content.encode())
    for path in sorted(paths):
        digest.update(b"\0" + path.encode() + b"\0" + fingerprint(path))
    return digest.hexdigest()[:16]


def fingerprint(path: str) -> bytes:
    """What a process that reads `path` depends on: a symlink's target, a file's bytes, a directory's files."""
    if os.path.islink(path):
        return b"link " + os.readlink(path).encode()
    if os.path.isdir(path):
        digest = hashlib.sha256()
        for name in sorted(os.listdir(path)):
            digest.update(name.encode() + b"\0" + fingerprint(os.path.join(path, name)))
        return b"directory " + digest.digest()
    if os.path.isfile(path):
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        return b"file " + digest.digest()
    return b"absent"


class Failure(Exception):
    """A refusal or a broken service, in words for the operator."""


class Manager(ABC):
    """A service manager's view of one service. Reading it changes nothing."""

    @abstractmethod
    def current(self, revision: str) -> bool:
        """Whether what runs was started from this revision of the definition on disk."""

    @abstractmethod
    def running(self) -> bool:
        """Whether the manager keeps a process up."""

    def stopped(self) -> bool:
        """Whether it stays down until it is applied again or the machine starts."""
        return not self.running()

    @abstractmethod
    def known(self) -> bool:
        """Whether the manager knows the service at all."""

    def enabled(self) -> bool:
        """Whether it starts with the machine."""
        return True

    def prepare(self) -> None:  # noqa: B027 - most managers need nothing here
        """Called before the definition is written: remember that a restart is due."""

    @abstractmethod
    def apply(self, restart: bool) -> None:
        """Load the definition on disk, enable it and, if asked, (re)start the process."""

    def reload(self) -> None:
        """Tell the process to read its files again, where its definition holds `@loaded@`."""
        raise NotImplementedError

    @abstractmethod
    def stop(self) -> None:
        """Stop every process of the service; returns when they are gone."""

    @abstractmethod
    def forget(self, delete: Callable[[], None]) -> None:
        """Stop, disable, `delete` the definition, and have the manager forget it."""

    def diagnosis(self) -> str:
        """What the manager says about a service that does not answer."""
        return ""


def run(module: AnsibleModule, services: Iterable[Tuple[Options, Manager]]) -> NoReturn:
    """Bring each service in turn to the module's `state` and exit; the first that fails ends it by one message."""
    handler = {"present": _present, "stopped": _stopped, "absent": _absent}[module.params["state"]]
    try:
        results = [handler(module, options, manager) for options, manager in services]
    except (Failure, OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=any(result["changed"] for result in results),
        diff=[result["diff"] for result in results if "diff" in result],
    )
    raise AssertionError("exit_json does not return")


def _present(module: AnsibleModule, params: Options, manager: Manager) -> Dict[str, Any]:
    if not params["content"]:
        raise Failure("content is required when state is present")
    definition = Definition.of(params["content"], params["reads"], params["reloads"])
    before = _read(params["path"]) or ""
    written = before == definition.text
    restart = not (definition.runs_as(before) and manager.running() and manager.current(definition.revision))
    reload = not written and not restart
    missing = [log for log in params["logs"] if not os.path.exists(log)]
    made = _keep_directories(module, params)
    changed = bool(made or restart or reload or missing or not manager.enabled())
    if changed and not module.check_mode:
        _create_logs(missing, params["user"])
        if restart:
            manager.prepare()
        if reload:
            manager.reload()
        if not written:
            write(module, params["path"], definition.text)
        manager.apply(restart)
    if params["health"] and not (changed and module.check_mode):
        _wait_until_healthy(params, manager)
    return {
        "changed": changed,
        "diff": {
            "before_header": params["path"],
            "after_header": params["path"],
            "before": before,
            "after": definition.text,
        },
    }


def _stopped(module: AnsibleModule, _params: Options, manager: Manager) -> Dict[str, Any]:
    changed = not manager.stopped()
    if changed and not module.check_mode:
        manager.stop()
    return {"changed": changed}


def _absent(module: AnsibleModule, params: Options, manager: Manager) -> Dict[str, Any]:
    path = params["path"]

    def delete() -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    changed = os.path.lexists(path) or manager.known()
    if changed and not module.check_mode:
        manager.forget(delete)
    return {"changed": changed}


def _read(path: str) -> Optional[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


def write(module: AnsibleModule, path: str, text: str) -> None:
    """Put `text` at `path` by rename, mode 0644; its directory is created."""
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=directory, prefix="." + os.path.basename(path) + ".")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(temporary, 0o644)
    module.atomic_move(temporary, path)


def _keep_directories(module: AnsibleModule, params: Options) -> bool:
    """Create what is missing of `directories` and `writable`, set mode, owner and group; whether anything changes."""
    user, changed = params["user"], False
    writable = [{"path": path, "mode": "0750", "owner": user, "group": user} for path in params["writable"]]
    for directory in params["directories"] + writable:
        path = directory["path"]
        if not os.path.isdir(path):
            changed = True
            if module.check_mode:
                continue
            os.makedirs(path)
        changed = module.set_mode_if_different(path, directory["mode"], changed)
        changed = module.set_owner_if_different(path, directory["owner"], changed)
        changed = module.set_group_if_different(path, directory["group"], changed)
    return changed


def _create_logs(paths: List[str], user: Optional[str]) -> None:
    for path in paths:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o640)
        with os.fdopen(handle, "a") as file:
            if user:
                account = pwd.getpwnam(user)
                os.fchown(file.fileno(), account.pw_uid, account.pw_gid)


def poll(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether `condition` came true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _wait_until_healthy(params: Options, manager: Manager) -> None:
    answer = "no answer"

    def healthy() -> bool:
        nonlocal answer
        answer = _answer(params["health"])
        return answer == "200"

    if not poll(healthy, params["health_timeout"]):
        details = [manager.diagnosis(), *(tail(log) for log in params["logs"])]
        raise Failure(
            f"{params['name']} is not healthy after {params['health_timeout']} s: {params['health']} gave {answer}.\n"
            + "\n".join(detail for detail in details if detail)
        )


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the unix socket at a path."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _answer(url: str) -> str:
    """The status code of a GET, straight to the host whatever proxy is set, or why there was none."""
    scheme, _, rest = url.partition(":")
    if scheme == "unix":  # unix:<socket>:<path>
        place, _, path = rest.partition(":")
        connection: http.client.HTTPConnection = UnixConnection(place, timeout=5)
    else:
        parts = urlsplit(url)
        path = parts.path or "/"
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    try:
        connection.request("GET", path)
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()


def tail(path: str, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, under its name; empty for an empty or missing log."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - 16384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    last = text.splitlines()[-lines:]
    return "\n".join([f"Last lines of {path}:", *("  " + line for line in last)]) if last else ""


def command(module: AnsibleModule, argv: List[str], accepted: Tuple[int, ...] = (0,)) -> Tuple[int, str]:
    """Run `argv`; return code and output, a `Failure` for a code that is not accepted."""
    code, out, err = module.run_command(argv)
    if code not in accepted:
        raise Failure(f"`{' '.join(argv)}` failed with {code}: {(err or out).strip()}")
    return code, out
