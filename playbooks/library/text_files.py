#!/usr/bin/python
"""Keep text files and the directories that hold them, all in one task."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: text_files
short_description: Write text files that differ from what is wanted, and create their directories
description: Directories that are there already are left as they are.
options:
  files:
    description: The files, for everybody to read.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Where the file lies., type: path, required: true}
      content: {description: Its text., type: str, required: true}
  owner: {description: Owner of the files and of a directory that is created., type: str}
  group: {description: Their group., type: str}
author: AI Appliance
"""

EXAMPLES = """
- name: Write the declaration
  text_files:
    files:
      - path: /etc/appliance/services.json
        content: "{{ appliance_declaration | to_nice_json }}"
"""


def write(module: AnsibleModule, path: Path, text: str) -> None:
    """Put the text there by rename; a directory that is made is for everybody to read."""
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True)
        attributes(module, path.parent, "0755")
    with tempfile.NamedTemporaryFile("w", dir=module.tmpdir, encoding="utf-8", delete=False) as file:
        file.write(text)
    module.atomic_move(file.name, str(path))


def attributes(module: AnsibleModule, path: Path, mode: str) -> bool:
    """Set mode, owner and group; whether that changes anything."""
    changed = module.set_mode_if_different(str(path), mode, False)
    changed = module.set_owner_if_different(str(path), module.params["owner"], changed)
    return bool(module.set_group_if_different(str(path), module.params["group"], changed))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                },
            },
            "owner": {"type": "str"},
            "group": {"type": "str"},
        },
        supports_check_mode=True,
    )
    diff: list[dict[str, str]] = []
    changed = False
    for file in module.params["files"]:
        name, wanted, path = file["path"], file["content"], Path(file["path"])
        found = path.read_text(errors="surrogateescape") if path.exists() else ""
        if found != wanted or not path.exists():
            diff.append({"before_header": name, "after_header": name, "before": found, "after": wanted})
            if not module.check_mode:
                write(module, path, wanted)
        if path.exists():
            changed |= attributes(module, path, "0644")
    module.exit_json(changed=changed or bool(diff), diff=diff)


if __name__ == "__main__":
    main()
