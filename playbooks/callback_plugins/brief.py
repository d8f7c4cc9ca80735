"""Ansible's own output without what only leads to tasks: what changes, what fails, and what a play says."""

from __future__ import annotations

from ansible.executor.task_result import CallbackTaskResult
from ansible.playbook.included_file import IncludedFile
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback.default import CallbackModule as Default

DOCUMENTATION = """
name: brief
type: stdout
short_description: The default output, tasks that change nothing and files that are included left out
extends_documentation_fragment: [default_callback, result_format_callback]
"""


class CallbackModule(Default):  # type: ignore[misc]  # ansible-core ships no types
    """For one host, in front of a person."""

    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "brief"

    def v2_playbook_on_include(self, included_file: IncludedFile) -> None:
        """Say nothing: the tasks inside speak for themselves."""

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        if isinstance(result.task, TaskInclude):
            return
        if result.task.action == "ansible.builtin.debug":
            self._display.display(str(result.result.get("msg", "")).strip())
            return
        super().v2_runner_on_ok(result)
