#!/usr/bin/python
"""Releases on a host: a virtual environment or a vendor's archive in a directory of its own, and the symlink to it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release
short_description: Install versioned releases and switch to them
description:
  - Makes I(path)/releases/<version> from wheels, an archive or a program, without a network, and switches I(path)/env
    to it by rename.
  - The release that was selected before stays beside it as I(path)/previous.
  - A release counts only when its marker is there, which is written last; an interrupted install is done again.
  - Without I(version) it only reports what is installed and what the interpreter is.
  - Used through the action plugin of the same name, which brings the wheels.
options:
  releases:
    type: list
    elements: dict
    required: true
    description: The releases, one for each program.
    suboptions:
      path: {type: path, required: true, description: Directory of the program that the releases belong to.}
      python: {type: path, description: The interpreter that releases are made with; needs CPython 3.11 to 3.14.}
      python_archive: {type: path, description: A standalone CPython's archive on the host, unpacked when it is absent.}
      python_sha256: {type: str, description: Its sha256; replaces I(python) by the interpreter inside.}
      version: {type: str, description: The release to install and select.}
      source: {type: path, description: "On the host: wheels with requirements.txt and pip, an archive or a program."}
      form:
        type: str
        default: wheels
        choices: [wheels, archive, program]
        description: What I(source) is; an archive loses its one outermost directory, a program becomes bin/I(program).
      program: {type: str, description: Name of a single program.}
      keep: {type: int, default: 2, description: "How many stay, the selected and the previous one among them."}
  state: {type: str, default: present, choices: [present, absent], description: Whether there are any releases.}
author: [AI Appliance maintainers]
"""

EXAMPLES = r"""
- name: Install a release
  release:
    releases:
      - path: /var/lib/gateway
        python: /usr/bin/python3
        version: 0.1.0-0123456789ab
        source: /tmp/wheels
"""

RETURN = r"""
releases:
  type: list
  elements: dict
  returned: always
  description:
    - Of each C(current), C(previous), C(installed) (oldest first), C(platform) such as linux-x86_64, C(changed).
    - Without I(version) also C(interpreter), its PEP 508 markers and platform.
"""

import contextlib
import json
import os
import posixpath
import shutil
import stat
import subprocess
import tarfile
import zipfile
import zlib
from functools import cache, partial
from typing import IO, Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

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
            "platform": "{0.sysname}-{0.machine}".format(os.uname()).lower(),
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


@cache
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
        raise Refusal("{} cannot make virtual environments ({}): {}".format(python, error, ADVICE)) from None
    version = tuple(facts.pop("version"))
    if facts["markers"]["implementation_name"] != "cpython" or not OLDEST <= version <= NEWEST:
        name = "{} {}.{}".format(facts["markers"]["platform_python_implementation"], *version)
        raise Refusal("{} is {}, not CPython 3.11 to 3.14: {}".format(python, name, ADVICE))
    return facts


def install(releases: Releases, options: Dict[str, Any], python: str, scratch: str) -> None:
    """Make the release in place, since scripts name their interpreter, and mark it when it is whole."""
    version, source = options["version"], options["source"]
    directory = releases.directory(version)
    if os.path.lexists(directory):
        shutil.rmtree(directory)
    os.makedirs(directory)
    if options["form"] == "archive":
        unpack(source, directory)
    elif options["form"] == "program":
        os.mkdir(os.path.join(directory, "bin"))
        shutil.copyfile(source, os.path.join(directory, "bin", options["program"]))
        os.chmod(os.path.join(directory, "bin", options["program"]), 0o755)  # noqa: S103 - everybody may run it
    else:
        install_wheels(directory, python, source if os.path.isdir(source) else unpack(source, scratch))
    marker = os.path.join(directory, MARKER)
    with open(marker + ".new", "w") as file:
        json.dump({"version": version, "python": python}, file)
    os.sync()  # the marker says that the files are there, after a power cut too
    os.replace(marker + ".new", marker)


def install_wheels(directory: str, python: str, wheels: str) -> None:
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


def compile_sources(python: str, directory: str) -> None:
    """Compile all modules: the service may not write here, and sources that never change need no check at start."""
    # A status is no failure: packages ship templates and examples that are no valid modules; pip passes over them too.
    with contextlib.suppress(Failed):
        mode = ["--invalidation-mode", "unchecked-hash"]
        run([python, "-m", "compileall", "-q", "-j", "0", *mode, os.path.join(directory, "lib")])


class Member(NamedTuple):
    """One entry of an archive; `target` is where a link leads."""

    name: str
    kind: int  # S_IFREG, S_IFDIR, S_IFLNK; a hard link is a second S_IFREG; another kind is refused
    executable: bool
    size: int
    target: str
    open: Callable[[], Optional[IO[bytes]]]


def tar_members(tar: tarfile.TarFile) -> Iterator[Member]:
    kinds = {tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK}
    for info in tar:
        regular = info.isreg() or info.islnk()
        kind = stat.S_IFREG if regular else kinds.get(info.type, 0)
        # A hard link's bytes are those of the entry that it names; one that is not in the archive is a KeyError.
        yield Member(info.name, kind, bool(info.mode & 0o100), info.size, info.linkname, partial(tar.extractfile, info))


def zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        mode = info.external_attr >> 16
        kind = stat.S_IFDIR if info.is_dir() else stat.S_IFMT(mode) or stat.S_IFREG
        target = os.fsdecode(archive.read(info)) if kind == stat.S_IFLNK and info.file_size < 4096 else ""
        yield Member(info.filename, kind, bool(mode & 0o100), info.file_size, target, partial(archive.open, info))


def unpack(archive: str, directory: str) -> str:
    """Unpack a tar or zip archive, without the one directory that holds all of it.

    Nothing is written outside of `directory`, no link leads there, and modes and owners are ours.

    Raises:
        Refusal: an entry would break this, or the archive is damaged or does not fit on the disk.
    """
    try:
        with contextlib.ExitStack() as stack:
            if tarfile.is_tarfile(archive):
                found = list(tar_members(stack.enter_context(tarfile.open(archive))))
            else:
                found = list(zip_members(stack.enter_context(zipfile.ZipFile(archive))))
            os.makedirs(directory, exist_ok=True)
            place(found, directory)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, KeyError, RuntimeError, zlib.error) as error:
        raise Refusal(
            "{} is not a whole archive: {}; take another one".format(os.path.basename(archive), error)
        ) from None
    return directory


def place(members: List[Member], directory: str) -> None:
    named = [(below(member.name, member.name), member) for member in members]
    tops = {name.partition("/")[0] for name, _ in named} - {"."}
    single = len(tops) == 1 and all(member.kind == stat.S_IFDIR for name, member in named if "/" not in name)
    free, needed = shutil.disk_usage(directory).free, sum(member.size for member in members)
    if needed > free:
        sizes = (free // 1000000, directory, needed // 1000000)
        raise Refusal("{} MB are free for {}, {} MB are needed; make room there".format(*sizes))
    outermost = tops.pop() if single else "."
    links: Set[str] = set()
    for name, member in named:
        path = posixpath.relpath(name, outermost)
        if any(path == link or path.startswith(link + "/") for link in links):
            raise Refusal("{} lies behind a link of the same archive; take another one".format(member.name))
        if path not in (".", ".."):  # the directory itself, and what stands for it above the outermost one
            write(member, path, os.path.join(directory, path))
        if member.kind == stat.S_IFLNK:
            links.add(path)


def below(path: str, name: str) -> str:
    """The path, normalised, when it does not lead out of the archive's directory."""
    normal = posixpath.normpath(path)
    if normal.startswith(("/", "../")) or normal == ".." or "\0" in normal:
        raise Refusal("{} leads out of the archive; take another one".format(name))
    return normal


def write(member: Member, path: str, destination: str) -> None:
    if member.kind == stat.S_IFDIR:
        os.makedirs(destination, exist_ok=True)
        return
    os.makedirs(os.path.dirname(destination), exist_ok=True)
    if member.kind == stat.S_IFLNK:
        # `..` only at the beginning, where it climbs over directories; after a name it could climb over a link.
        if member.target.startswith("/") or "/../" in member.target.lstrip("./") + "/":
            raise Refusal("{} is a link to {}; take another archive".format(member.name, member.target))
        below(posixpath.join(posixpath.dirname(path), member.target), member.name)
        os.symlink(member.target, destination)
        return
    source = member.open() if member.kind == stat.S_IFREG else None
    if source is None:
        raise Refusal("{} is neither a file nor a directory nor a link; take another archive".format(member.name))
    with source, open(destination, "wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    os.chmod(destination, 0o755 if member.executable else 0o644)


def standalone(releases: Releases, archive: str, sha256: str, check_mode: bool) -> Tuple[str, bool]:
    """The interpreter of the standalone CPython with this sha256, and whether it is or would be unpacked now."""
    home = os.path.join(releases.path, "python", sha256[:12])
    python = os.path.join(home, "bin", "python3")
    if os.path.exists(home) or check_mode or not archive:
        return python, not os.path.exists(home)
    unfinished = home + ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    os.rename(unpack(archive, unfinished), home)
    return python, True


def absent(module: AnsibleModule, releases: Releases, _options: Dict[str, Any]) -> Dict[str, Any]:
    made = releases.made()
    if not module.check_mode:
        for path in made:
            if os.path.islink(path):
                os.unlink(path)
            else:
                shutil.rmtree(path)
    return {"changed": bool(made), "diff": {"before": "".join(path + "\n" for path in made), "after": ""}}


def present(module: AnsibleModule, releases: Releases, options: Dict[str, Any]) -> Dict[str, Any]:
    python, changed = options["python"], False
    if options["python_sha256"]:
        python, changed = standalone(releases, options["python_archive"], options["python_sha256"], module.check_mode)
        if not os.path.exists(python):
            return {"changed": True, "python_missing": True}
    version = options["version"]
    if not version:
        return {"changed": changed, "python": python, "interpreter": interpreter(python) if python else None}
    before, missing = releases.selected("env"), not releases.complete(version)
    if not module.check_mode:
        if missing and not options["source"]:
            raise Refusal("release {} is not installed and no source was given".format(version))
        if missing:
            install(releases, options, python, os.path.join(module.tmpdir, "wheels", version))
        releases.select(version)
        releases.prune(options["keep"])
    return {
        "changed": missing or before != version,
        "diff": {"before": "env -> {}\n".format(before or "nothing"), "after": "env -> {}\n".format(version)},
    }


OPTIONS: Dict[str, Dict[str, Any]] = {
    "path": {"type": "path", "required": True},
    "python": {"type": "path"},
    "python_archive": {"type": "path"},
    "python_sha256": {"type": "str"},
    "version": {"type": "str"},
    "source": {"type": "path"},
    "form": {"type": "str", "default": "wheels", "choices": ["wheels", "archive", "program"]},
    "program": {"type": "str"},
    "keep": {"type": "int", "default": 2},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "releases": {"type": "list", "elements": "dict", "required": True, "options": OPTIONS},
            "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)  # root owns it, everybody reads it, nobody else writes it
    bring, done, diff = absent if module.params["state"] == "absent" else present, [], []
    try:
        for options in module.params["releases"]:
            releases = Releases(options["path"])
            result = bring(module, releases, options)
            diff += [result.pop("diff")] if "diff" in result else []
            done.append(dict(releases.report(), **result))
    except (Refusal, Failed, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=any(release["changed"] for release in done), releases=done, diff=diff)


if __name__ == "__main__":
    main()
