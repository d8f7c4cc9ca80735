"""Stands in for what a role would do: at `path` lies a text, a link to `target`, or nothing.

It runs on the control node, which in these tests is the host as well, and so costs no process for a module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        path, text, target = (self._task.args.get(name) for name in ("path", "text", "target"))
        place = Path(path)
        found = str(place.readlink()) if place.is_symlink() else place.read_text() if place.exists() else None
        changed = found != (text or target)
        if changed and not self._task.check_mode:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            if text:
                place.write_text(text)
            elif target:
                place.symlink_to(target)
        return {"changed": changed}
