#!/usr/bin/python
"""A release on a host: a finished virtual environment in a directory of its own, and the symlink that selects it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release
short_description: Install a versioned virtual environment and switch to it
description:
  - Makes I(path)/releases/<version> from wheels, without a network, and switches I(path)/env to it by rename.
  - The release that was selected before stays beside it as I(path)/previous.
  - A release counts only when its marker is there, which is written last; an interrupted install is done again.
  - Without I(version) it only reports what is installed and what the interpreter is.
  - Used through the action plugin of the same name, which brings the wheels.
options:
  path: {type: path, required: true, description: Directory of the program that the releases belong to.}
  python: {type: path, description: The interpreter that releases are made with; needs CPython 3.11 to 3.14.}
  python_archive: {type: path, description: Archive of a standalone CPython on the host, unpacked when it is absent.}
  python_sha256: {type: str, description: Its sha256; replaces I(python) by the interpreter inside.}
  version: {type: str, description: The release to install and select.}
  source: {type: path, description: Directory or tar archive on the host with wheels, requirements.txt and pip's wheel.}
  keep: {type: int, default: 2, description: How many releases stay, the selected and the previous one among them.}
  state: {type: str, default: present, choices: [present, absent], description: Whether there are any releases.}
author: [AI Appliance maintainers]
"""

EXAMPLES = r"""
- name: Install a release
  release:
    path: /var/lib/gateway
    python: /usr/bin/python3
    version: 0.1.0-0123456789ab
    source: /tmp/wheels
"""

RETURN = r"""
current: {type: str, returned: always, description: The selected release; empty when there is none.}
previous: {type: str, returned: always, description: The release that was selected before it.}
installed: {type: list, elements: str, returned: always, description: All finished releases, oldest first.}
interpreter: {type: dict, returned: without version, description: PEP 508 markers and platform of the interpreter.}
"""

import contextlib
import json
import os
import shutil
import subprocess
import tarfile
from typing import Any, Dict, List, Tuple

from ansible.module_utils.basic import AnsibleModule

MARKER = ".complete"
OLDEST, NEWEST = (3, 11), (3, 14)  # what the locks hold wheels for
ADVICE = "install python3.11 or newer with: apt-get install python3; or set appliance_python to one"

# Runs under the interpreter that releases are made with, whatever Python Ansible itself uses on the host.
PROBE = """
import json, os, platform, sys, venv
version = "{0.major}.{0.minor}.{0.micro}".format(sys.implementation.version)
libc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else ""
print(json.dumps({
    "version": list(sys.version_info[:2]),
    "glibc": (libc or "").replace("glibc ", ""),
    "macos": platform.mac_ver()[0],
    "markers": {
        "implementation_name": sys.implementation.name, "implementation_version": version, "os_name": os.name,
        "platform_machine": platform.machine(), "platform_python_implementation": platform.python_implementation(),
        "platform_release": "", "platform_system": platform.system(), "platform_version": "",
        "python_full_version": platform.python_version(), "python_version": "{}.{}".format(*sys.version_info[:2]),
        "sys_platform": sys.platform,
    },
}))
"""


class Refusal(Exception):
    """What stops the installation, in one line that says what to type."""


class Failed(Exception):
    """What a command said why it failed: its last line, or all from pip's `ERROR:` on."""


class Releases:
    """The directories below `path`; nothing outside of them is touched."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.releases = os.path.join(path, "releases")

    def directory(self, version: str) -> str:
        return os.path.join(self.releases, version)

    def selected(self, link: str) -> str:
        """The version that a symlink selects; empty when there is no such link."""
        try:
            return os.path.basename(os.readlink(os.path.join(self.path, link)))
        except OSError:
            return ""

    def complete(self, version: str) -> bool:
        return bool(version) and os.path.isfile(os.path.join(self.directory(version), MARKER))

    def installed(self) -> List[str]:
        """Finished releases, oldest first."""
        names = os.listdir(self.releases) if os.path.isdir(self.releases) else []
        finished = [name for name in names if self.complete(name)]
        return sorted(finished, key=lambda name: os.stat(os.path.join(self.directory(name), MARKER)).st_mtime)

    def report(self) -> Dict[str, Any]:
        return {
            "current": self.selected("env"),
            "previous": self.selected("previous"),
            "installed": self.installed(),
        }

    def select(self, version: str) -> None:
        """Switch `env` by rename: a process that starts meanwhile sees the old release or the new one."""
        current = self.selected("env")
        if current == version:
            return
        if self.complete(current):
            self._point("previous", current)
        self._point("env", version)

    def _point(self, name: str, version: str) -> None:
        link = os.path.join(self.path, name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link + ".new")
        os.symlink(os.path.join("releases", version), link + ".new")
        os.replace(link + ".new", link)

    def prune(self, keep: int) -> None:
        """Remove what an interruption left, and the oldest releases beyond `keep`; never one that a link selects."""
        selected = {self.selected("env"), self.selected("previous")} - {""}
        others = [version for version in self.installed() if version not in selected]
        kept = selected.union(others[len(others) - max(0, keep - len(selected)) :])
        for name in set(os.listdir(self.releases)) - kept:
            self.discard(name)

    def discard(self, version: str) -> None:
        """Remove a release, its marker first, so that no half of one ever counts."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.directory(version), MARKER))
        shutil.rmtree(self.directory(version))

    def made(self) -> List[str]:
        """Everything there that this module made."""
        paths = [os.path.join(self.path, name) for name in ("env", "previous", "releases", "python")]
        return [path for path in paths if os.path.lexists(path)]


def run(argv: List[str]) -> str:
    """Give what a command prints.

    Raises:
        Failed: it ended with another status than 0.
    """
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        _, error, rest = said.partition("ERROR: ")
        raise Failed(" ".join(rest.split()) if error else said.rpartition("\n")[2])
    return done.stdout


def interpreter(python: str) -> Dict[str, Any]:
    """Facts about `python`: markers, glibc and macOS version.

    Raises:
        Refusal: it is missing, cannot make virtual environments, or is of a version that there are no wheels for.
    """
    try:
        facts: Dict[str, Any] = json.loads(run([python, "-I", "-c", PROBE]))
    except OSError as error:
        raise Refusal("{}: {}: {}".format(python, error.strerror, ADVICE)) from None
    except Failed as error:
        raise Refusal("{} makes no virtual environments ({}): {}".format(python, error, ADVICE)) from None
    version = tuple(facts.pop("version"))
    if facts["markers"]["implementation_name"] != "cpython" or not OLDEST <= version <= NEWEST:
        name = "{} {}.{}".format(facts["markers"]["platform_python_implementation"], *version)
        raise Refusal("{} is {}, not CPython 3.11 to 3.14: {}".format(python, name, ADVICE))
    return facts


def install(releases: Releases, version: str, python: str, source: str, scratch: str) -> None:
    """Make the release in place, since scripts name their interpreter, and mark it when it is whole."""
    directory = releases.directory(version)
    if os.path.lexists(directory):
        shutil.rmtree(directory)
    os.makedirs(directory)
    wheels = source if os.path.isdir(source) else unpack(source, os.path.join(scratch, "wheels"))
    run([python, "-m", "venv", "--without-pip", directory])
    inside = os.path.join(directory, "bin", "python")
    pip = next(name for name in os.listdir(wheels) if name.startswith("pip-") and name.endswith(".whl"))
    run([
        *(inside, os.path.join(wheels, pip, "pip"), "--isolated", "--disable-pip-version-check", "--no-cache-dir"),
        *("--no-input", "--quiet", "install", "--no-index", "--no-deps", "--require-hashes", "--no-compile"),
        *("--root-user-action=ignore", "--only-binary=:all:", "--find-links", wheels),
        *("--requirement", os.path.join(wheels, "requirements.txt")),
    ])  # fmt: skip
    compile_sources(inside, directory)
    marker = os.path.join(directory, MARKER)
    with open(marker + ".new", "w") as file:
        json.dump({"version": version, "python": python}, file)
    os.sync()  # the marker says that the files are there, after a power cut too
    os.replace(marker + ".new", marker)


def compile_sources(python: str, directory: str) -> None:
    """Compile all modules: the service may not write here, and sources that never change need no check at start."""
    # A status is no failure: packages ship templates and examples that are no valid modules; pip passes over them too.
    with contextlib.suppress(Failed):
        mode = ["--invalidation-mode", "unchecked-hash"]
        run([python, "-m", "compileall", "-q", "-j", "0", *mode, os.path.join(directory, "lib")])


def unpack(archive: str, directory: str) -> str:
    """Unpack an archive that the control node made or checked by its sha256."""
    os.makedirs(directory)
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(directory, filter="data")
        else:
            tar.extractall(directory)  # noqa: S202 - a Python without filters; the archive is ours
    return directory


def standalone(releases: Releases, archive: str, sha256: str, check_mode: bool) -> Tuple[str, bool]:
    """The interpreter of the standalone CPython with this sha256, and whether it is or would be unpacked now."""
    home = os.path.join(releases.path, "python", sha256[:12])
    python = os.path.join(home, "bin", "python3")
    if os.path.exists(home) or check_mode or not archive:
        return python, not os.path.exists(home)
    unfinished = home + ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unpack(archive, unfinished)
    inner = os.listdir(unfinished)
    os.rename(os.path.join(unfinished, inner[0]) if len(inner) == 1 else unfinished, home)
    shutil.rmtree(unfinished, ignore_errors=True)
    return python, True


def absent(module: AnsibleModule, releases: Releases) -> Dict[str, Any]:
    made = releases.made()
    if not module.check_mode:
        for path in made:
            if os.path.islink(path):
                os.unlink(path)
            else:
                shutil.rmtree(path)
    return {"changed": bool(made), "diff": {"before": "".join(path + "\n" for path in made), "after": ""}}


def present(module: AnsibleModule, releases: Releases) -> Dict[str, Any]:
    options = module.params
    python, changed = options["python"], False
    if options["python_sha256"]:
        python, changed = standalone(releases, options["python_archive"], options["python_sha256"], module.check_mode)
        if not os.path.exists(python):
            return {"changed": True, "python_missing": True}
    version = options["version"]
    if not version:
        return {"changed": changed, "python": python, "interpreter": interpreter(python)}
    before, missing = releases.selected("env"), not releases.complete(version)
    if not module.check_mode:
        if missing and not options["source"]:
            raise Refusal("release {} is not installed and no wheels were given".format(version))
        if missing:
            install(releases, version, python, options["source"], module.tmpdir)
        releases.select(version)
        releases.prune(options["keep"])
    return {
        "changed": missing or before != version,
        "diff": {"before": "env -> {}\n".format(before or "nothing"), "after": "env -> {}\n".format(version)},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "python": {"type": "path"},
            "python_archive": {"type": "path"},
            "python_sha256": {"type": "str"},
            "version": {"type": "str"},
            "source": {"type": "path"},
            "keep": {"type": "int", "default": 2},
            "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
        },
        required_if=[("state", "present", ("python", "python_sha256"), True)],
        supports_check_mode=True,
    )
    os.umask(0o022)  # root owns it, everybody reads it, nobody else writes it
    releases = Releases(module.params["path"])
    try:
        result = absent(module, releases) if module.params["state"] == "absent" else present(module, releases)
    except (Refusal, Failed, OSError, tarfile.TarError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**dict(releases.report(), **result))


if __name__ == "__main__":
    main()
