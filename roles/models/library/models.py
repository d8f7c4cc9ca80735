#!/usr/bin/python
"""Model files in one directory of a host: present, missing, moved or unlisted."""

from __future__ import annotations

DOCUMENTATION = r"""
module: models
short_description: Hold the files of a directory to their digests
description:
  - A file that lies there under another name is renamed. What is missing is reported, with the bytes that are there
    already; with I(piece) more bytes are appended, and the file takes its place when its digest is right.
  - A file's digest is remembered in C(.models.json), and computed again only when its size or time has changed.
  - Used through the action plugin of the same name, which brings the bytes.
options:
  path: {type: path, required: true, description: Directory of the files; it is created.}
  files:
    type: list
    elements: dict
    required: true
    description: The files that are wanted, by I(file) (name), I(sha256) and I(bytes).
    suboptions:
      file: {type: str, required: true, description: Its name.}
      sha256: {type: str, required: true, description: Its digest.}
      bytes: {type: int, required: true, description: Its size.}
  piece:
    type: dict
    description: Bytes to append.
    suboptions:
      file: {type: str, required: true, description: The wanted file that they belong to.}
      source: {type: path, required: true, description: File on the host that holds them.}
      start: {type: int, default: 0, description: Where they begin in the source.}
author: [AI Appliance maintainers]
"""

EXAMPLES = r"""
- name: Ask what is missing
  models:
    path: /var/lib/llamacpp/models
    files: [{file: tiny.gguf, sha256: 0123…, bytes: 1000}]
"""

RETURN = r"""
missing: {type: dict, returned: always, description: By name, the bytes of each missing file that are there already.}
"""

import contextlib
import hashlib
import json
import os
import shutil
from typing import Any, Dict, List, Optional

from ansible.module_utils.basic import AnsibleModule

RECORD = ".models.json"
BLOCK = 1 << 20


class Refusal(Exception):
    """What stops the work, in one line that says what to type."""


class Directory:
    """The directory, and what it remembers of its files: size, time and digest."""

    def __init__(self, path: str, wanted: List[Dict[str, Any]]) -> None:
        self.path = path
        self.wanted = {entry["file"]: entry for entry in wanted}
        try:
            with open(self.at(RECORD)) as file:
                self._record: Dict[str, List[Any]] = json.load(file)
        except FileNotFoundError:
            self._record = {}

    def at(self, name: str) -> str:
        return os.path.join(self.path, name)

    def part(self, name: str) -> str:
        return self.at(".{}.part".format(self.wanted[name]["sha256"]))

    def names(self) -> List[str]:
        found = os.listdir(self.path) if os.path.isdir(self.path) else []
        return sorted(name for name in found if not name.startswith("."))

    def digest(self, name: str) -> str:
        """The file's sha256, from the record while its size and time are those of the record."""
        status = os.stat(self.at(name))
        known = self._record.get(name, [])
        if known[:2] != [status.st_size, status.st_mtime_ns]:
            known = [status.st_size, status.st_mtime_ns, sha256(self.at(name))]
            self._record[name] = known
        return str(known[2])

    def holds(self, name: str, entry: Dict[str, Any]) -> bool:
        path = self.at(name)
        fits = os.path.isfile(path) and os.path.getsize(path) == entry["bytes"]
        return fits and self.digest(name) == entry["sha256"]

    def moved(self) -> Dict[str, str]:
        """By the name that is wanted, the name that a file with the right digest has now."""
        others = [name for name in self.names() if name not in self.wanted]
        found: Dict[str, str] = {}
        for name, entry in self.wanted.items():
            if not self.holds(name, entry):
                same = [other for other in others if other not in found.values() and self.holds(other, entry)]
                if same:
                    found[name] = same[0]
        return found

    def missing(self) -> Dict[str, int]:
        absent = [name for name, entry in self.wanted.items() if not self.holds(name, entry)]
        return {name: os.path.getsize(self.part(name)) if os.path.exists(self.part(name)) else 0 for name in absent}

    def rename(self, old: str, new: str) -> None:
        os.replace(self.at(old), self.at(new))
        self._record[new] = self._record.pop(old)

    def forget_parts(self) -> None:
        """Remove what was brought of files that nobody wants any more."""
        kept = {os.path.basename(self.part(name)) for name in self.wanted}
        for name in set(os.listdir(self.path)) - kept:
            if name.endswith(".part"):
                os.unlink(self.at(name))

    def append(self, name: str, source: str, start: int) -> None:
        """Append to the part of a file; a whole one with the right digest becomes the file."""
        part, entry = self.part(name), self.wanted[name]
        with open(source, "rb") as piece, open(part, "ab") as file:
            piece.seek(start)
            shutil.copyfileobj(piece, file, BLOCK)
            file.flush()
            os.fsync(file.fileno())
        if os.path.getsize(part) < entry["bytes"]:
            return
        found = sha256(part)
        if found != entry["sha256"]:
            os.unlink(part)
            raise Refusal("{} came with the sha256 {}, not {}; run again".format(name, found, entry["sha256"]))
        os.chmod(part, 0o644)
        os.replace(part, self.at(name))
        self.digest(name)

    def remember(self) -> None:
        record = {name: known for name, known in self._record.items() if os.path.exists(self.at(name))}
        text = json.dumps(record, indent=2, sort_keys=True) + "\n"
        with contextlib.suppress(FileNotFoundError), open(self.at(RECORD)) as file:
            if file.read() == text:
                return
        with open(self.at(RECORD + ".new"), "w") as file:
            file.write(text)
        os.replace(self.at(RECORD + ".new"), self.at(RECORD))


def sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def check_room(directory: Directory, missing: Dict[str, int]) -> None:
    existing = directory.path
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    free = shutil.disk_usage(existing).free
    needed = sum(directory.wanted[name]["bytes"] - have for name, have in missing.items())
    if needed > free:
        raise Refusal(
            "{} MB are free for {}, the models {} need {} MB; make room there".format(
                free // 1000000, directory.path, ", ".join(missing), needed // 1000000
            )
        )


def run(module: AnsibleModule) -> Dict[str, Any]:
    directory = Directory(module.params["path"], module.params["files"])
    piece: Optional[Dict[str, Any]] = module.params["piece"]
    if piece:
        directory.append(piece["file"], piece["source"], piece["start"])
        directory.remember()
        return {"changed": True, "missing": directory.missing()}
    moved = directory.moved()
    missing = {name: have for name, have in directory.missing().items() if name not in moved}
    check_room(directory, missing)
    if not module.check_mode:
        os.makedirs(directory.path, exist_ok=True)
        for new, old in moved.items():
            directory.rename(old, new)
        directory.forget_parts()
        directory.remember()
    for name in directory.names():
        if name not in directory.wanted and name not in moved.values():
            path = directory.at(name)
            module.warn("{} is in no manifest and kept; to remove it type: rm {}".format(path, path))
    lines = ["{} -> {}\n".format(old, new) for new, old in moved.items()] + [name + "\n" for name in missing]
    return {"changed": bool(moved or missing), "missing": missing, "diff": {"before": "", "after": "".join(lines)}}


def main() -> None:
    wanted = {"file": {"required": True}, "sha256": {"required": True}, "bytes": {"type": "int", "required": True}}
    piece = {
        "file": {"required": True},
        "source": {"type": "path", "required": True},
        "start": {"type": "int", "default": 0},
    }
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "files": {"type": "list", "elements": "dict", "required": True, "options": wanted},
            "piece": {"type": "dict", "options": piece},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)  # the service's user reads them
    try:
        result = run(module)
    except (Refusal, OSError, ValueError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
