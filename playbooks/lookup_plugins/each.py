"""A variable for each value of another one, so that one task does what a loop over an include did."""

from __future__ import annotations

from typing import Any

from ansible.plugins.lookup import LookupBase

DOCUMENTATION = """
name: each
short_description: Evaluate a variable once for each value of another variable
description: Variables that the first one names see the value too, however deep they lie.
options:
  _terms: {description: Name of the variable to evaluate., type: list, elements: str, required: true}
author: AI Appliance
"""

EXAMPLES = """
- name: Keep the units
  systemd_unit:
    services: "{{ query('each', 'service_options', service_name=service_names) }}"
"""

RETURN = """
_list: {description: What the variable is for each value., type: list, elements: raw}
"""


class LookupModule(LookupBase):  # type: ignore[misc]  # ansible-core ships no types
    """One keyword: the variable that takes the values."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[Any]:
        (wanted,), ((name, values),) = terms, kwargs.items()
        known = variables or {}
        return [self._evaluated(wanted, {**known, name: value}) for value in values]

    def _evaluated(self, wanted: str, known: dict[str, Any]) -> Any:
        return self._templar.copy_with_new_env(available_variables=known).template(known[wanted])
