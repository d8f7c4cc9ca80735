#!/usr/bin/python
"""Products' files on a host: rendered ones and the operator's own, checked together before any is replaced."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from typing import Any, Dict, List, NamedTuple, Optional

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: product_files
short_description: Write the files of a product together, or none of them, product by product
description:
  - A file of the operator's is written when it is absent or still what an earlier run wrote. One that was edited on the
    host is kept, and a warning shows how it differs from what would have been written.
  - The program in C(check) judges the files as they will be, before any is replaced; its refusal is this module's.
  - What a run wrote, and what passed the check, is remembered by hash in C(.written.json) beside the files.
options:
  state:
    description: C(absent) removes the files, but not the operator's edited ones.
    type: str
    choices: [present, absent]
    default: present
  products:
    description: The files of each product, and what judges them.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Directory of the files; it is created., type: path, required: true}
      files:
        description: All files that the product reads.
        type: list
        elements: dict
        required: true
        suboptions:
          name: {description: Name below O(products[].path)., type: str, required: true}
          content: {description: Its text; not needed to remove it., type: str}
          secret: {description: Its text when nobody may see it; of lines NAME=value the names are shown., type: str}
          operator: {description: Whether the operator may edit it on the host., type: bool, default: false}
      overwrite: {description: Names of edited files to replace all the same., type: list, elements: str, default: []}
      setting: {description: The variable that C(overwrite) comes from, for messages., type: str, default: overwrite}
      owner: {description: Owner of the files., type: str}
      group: {description: Group that may read them., type: str}
      check:
        description: Command that judges the files before they are there; C(path) in it becomes that of their copies.
        type: list
        elements: str
      environment: {description: Its environment; names below C(path) as well., type: dict, default: {}}
author: AI Appliance
"""

EXAMPLES = r"""
- name: Write the configuration
  product_files:
    products:
      - path: /var/lib/gateway/app
        files:
          - {name: .env, secret: "GATEWAY_BEARER_TOKEN=secret-of-16-characters\n", operator: true}
          - {name: backends.yaml, content: "backends: {}\n"}
        check: [/var/lib/gateway/env/bin/gateway, check, --env-file, /var/lib/gateway/app/.env]
"""

RETURN = r"""
kept: {description: Names of edited files that were kept., returned: always, type: list, elements: str}
"""

MODE = 0o640
RECORD = ".written.json"
CHECKED = "check"  # the key in RECORD of what passed the check last


class File(NamedTuple):
    """One file: what is on the host, what would be written, and what an earlier run wrote (sha256)."""

    name: str
    wanted: str
    secret: bool
    operator: bool
    found: Optional[str]
    written: Optional[str]

    def edited(self) -> bool:
        """Whether it is the operator's and neither as wanted nor as an earlier run left it."""
        ours = self.found is None or self.found == self.wanted or sha256(self.found) == self.written
        return self.operator and not ours

    def difference(self) -> str:
        """From what is on the host to what is wanted; of a secret file only names."""
        if self.secret:
            names = sorted({line.partition("=")[0] for line in changed_lines(self.found or "", self.wanted)})
            return "other values, not shown, of: {}".format(", ".join(names)) if names else "other text, not shown"
        lines = difflib.unified_diff(
            (self.found or "").splitlines(), self.wanted.splitlines(), "on the host", "would be written", lineterm=""
        )
        return "\n".join(lines)


def changed_lines(before: str, after: str) -> List[str]:
    """Lines NAME=value that only one of the texts has."""
    sets = [{line for line in text.splitlines() if re.match(r"\w+\s*=", line)} for text in (before, after)]
    return sorted(sets[0] ^ sets[1])


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read(path: str) -> Optional[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return None


class Files:
    """The files below one directory."""

    def __init__(self, module: AnsibleModule, given: Dict[str, Any]) -> None:
        self._module = module
        self._given = given
        self._path: str = given["path"]
        self._record: Dict[str, str] = json.loads(read(os.path.join(self._path, RECORD)) or "{}")
        self._files = [self._file(options) for options in given["files"]]
        overwrite = self._overwrite()
        self._kept = [file for file in self._files if file.edited() and file.name not in overwrite]

    def _file(self, options: Dict[str, Any]) -> File:
        name, secret = options["name"], options["secret"] is not None
        wanted = options["secret"] if secret else options["content"] or ""
        found = read(os.path.join(self._path, name))
        return File(name, wanted, secret, options["operator"], found, self._record.get(name))

    def _overwrite(self) -> List[str]:
        names: List[str] = self._given["overwrite"]
        own = [file["name"] for file in self._given["files"] if file["operator"]]
        for name in names:
            if name not in own:
                self._module.fail_json(
                    msg="{}: {} is not a file of the operator's; there are {}".format(
                        self._given["setting"], name, ", ".join(own)
                    )
                )
        return names

    def present(self) -> Dict[str, Any]:
        for file in self._kept:
            self._module.warn(
                "{}: edited on the host and kept; -e {}={} replaces it\n{}".format(
                    os.path.join(self._path, file.name), self._given["setting"], file.name, file.difference()
                )
            )
        stale = [file for file in self._files if file not in self._kept and file.found != file.wanted]
        if not self._module.check_mode:
            self._directory()
            self._write(stale)
        attributes = [self._attributes(file.name) for file in self._files]
        return {"changed": bool(stale) or any(attributes), "diff": [self._shown(file) for file in stale]}

    def _directory(self) -> None:
        """Create the directory: everybody may list it, only its owner may write there."""
        if not os.path.isdir(self._path):
            os.mkdir(self._path)
            os.chmod(self._path, 0o755)  # noqa: S103 - the files in it are closed, and the umask may say less

    def _write(self, stale: List[File]) -> None:
        """Check all files as they will be, unless that very check has passed, then move the stale ones into place."""
        texts = {file.name: file.found if file in self._kept else file.wanted for file in self._files}
        ours = {file.name: sha256(file.wanted) for file in self._files if file not in self._kept}
        record = {**self._record, **ours, CHECKED: self._fingerprint(texts)}
        if not stale and record == self._record:
            return
        staged = tempfile.mkdtemp(prefix=".staged-", dir=self._path)
        try:
            for name, text in texts.items():
                self._stage(staged, name, text)
            self._judge(staged)
            self._stage(staged, RECORD, json.dumps(record, indent=2, sort_keys=True) + "\n")
            for name in [*(file.name for file in stale), RECORD]:
                self._attributes(name, staged)
                os.replace(os.path.join(staged, name), os.path.join(self._path, name))
        finally:
            shutil.rmtree(staged)

    def _fingerprint(self, texts: Dict[str, Optional[str]]) -> str:
        """A hash of all that the check judges: texts, command, environment, and the release behind the program."""
        check, environment = self._given["check"] or [], self._given["environment"]
        return sha256(json.dumps([texts, check, environment, [os.path.realpath(word) for word in check[:1]]]))

    @staticmethod
    def _stage(directory: str, name: str, text: Optional[str]) -> None:
        descriptor = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text or "")
            file.flush()
            os.fsync(file.fileno())

    def _judge(self, staged: str) -> None:
        command = [word.replace(self._path, staged) for word in self._given["check"] or []]
        if not command:
            return
        given = self._given["environment"]
        environment = {name: str(value).replace(self._path, staged) for name, value in given.items()}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip() or "{} exited with {}".format(command[0], done.returncode)
            self._module.fail_json(
                msg=said.replace(staged, self._path) + "\nNothing was written, and what runs is left as it was."
            )

    def _attributes(self, name: str, directory: Optional[str] = None) -> bool:
        """Bring owner, group and mode about; whether they had to be changed. RECORD is for its owner alone."""
        path = os.path.join(directory or self._path, name)
        if not os.path.exists(path):
            return False
        changed: bool = self._module.set_mode_if_different(path, 0o600 if name == RECORD else MODE, False)
        if self._given["owner"]:
            changed = self._module.set_owner_if_different(path, self._given["owner"], changed)
        if self._given["group"]:
            changed = self._module.set_group_if_different(path, self._given["group"], changed)
        return changed

    def _shown(self, file: File) -> Dict[str, str]:
        path = os.path.join(self._path, file.name)
        if file.secret:
            return {"prepared": "{}: {}\n".format(path, file.difference())}
        return {"before_header": path, "after_header": path, "before": file.found or "", "after": file.wanted}

    def absent(self) -> Dict[str, Any]:
        for file in self._kept:
            self._module.warn("{}: edited on the host and kept".format(os.path.join(self._path, file.name)))
        names = [file.name for file in self._files if file not in self._kept and file.found is not None]
        names += [RECORD] if os.path.exists(os.path.join(self._path, RECORD)) and not self._kept else []
        if not self._module.check_mode:
            for name in names:
                os.unlink(os.path.join(self._path, name))
            if os.path.isdir(self._path) and not os.listdir(self._path):
                os.rmdir(self._path)
        return {"changed": bool(names)}

    def kept(self) -> List[str]:
        return [file.name for file in self._kept]


OPTIONS: Dict[str, Dict[str, Any]] = {
    "path": {"type": "path", "required": True},
    "files": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "content": {"type": "str"},
            "secret": {"type": "str", "no_log": True},
            "operator": {"type": "bool", "default": False},
        },
        "mutually_exclusive": [("content", "secret")],
    },
    "overwrite": {"type": "list", "elements": "str", "default": []},
    "setting": {"type": "str", "default": "overwrite"},
    "owner": {"type": "str"},
    "group": {"type": "str"},
    "check": {"type": "list", "elements": "str"},
    "environment": {"type": "dict", "default": {}},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "products": {"type": "list", "elements": "dict", "required": True, "options": OPTIONS},
        },
        supports_check_mode=True,
    )
    changed, diff, kept = False, [], []
    for given in module.params["products"]:
        try:
            files = Files(module, given)
            done = files.present() if module.params["state"] == "present" else files.absent()
        except (OSError, ValueError) as error:
            module.fail_json(msg="{}: {}; correct it and run again".format(given["path"], error))
        changed |= done["changed"]
        diff += done.get("diff", [])
        kept += files.kept()
    module.exit_json(changed=changed, diff=diff, kept=kept)


if __name__ == "__main__":
    main()
