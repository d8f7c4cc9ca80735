#!/usr/bin/python
"""Ask a gateway what a client asks, once it can serve, and say what was not answered."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: ask_gateway
short_description: Wait until a gateway can serve, then send it requests as a client does
description:
  - Changes nothing. A request is sent again while it gets 404 or 503, since what was just reloaded is known in a moment
    and a backend that was just restarted by the next probe.
options:
  port: {description: Port of the API on loopback., type: int, required: true}
  ready_port: {description: Port on loopback where C(/readyz) answers., type: int, required: true}
  token: {description: Bearer token., type: str, required: true}
  requests:
    description: Method, path, format (json, form-multipart) and body of each.
    type: list
    elements: dict
    required: true
  patience: {description: Seconds to wait for readiness and for each answer., type: int, default: 45}
author: AI Appliance
"""

EXAMPLES = """
- name: Ask as a client
  ask_gateway:
    port: 8800
    ready_port: 8801
    token: "{{ verify_token }}"
    requests: [{method: GET, path: /v1/models, format: json, body: {}}]
"""

RETURN = """
failures: {description: "Path, model, status, reason of what was not answered", returned: always, type: list}
"""

PAUSE_SEC = 1.0
ANSWER_SEC = 120  # a model may be loaded first


def encoded(request: dict[str, Any]) -> tuple[str, Any]:
    """The type and bytes of a request's body."""
    if request["format"] == "json":
        return "application/json", json.dumps(request["body"]) if request["body"] else None
    from ansible.module_utils.urls import prepare_multipart  # here, since few runs need it and it takes long

    kind, body = prepare_multipart(request["body"])
    return str(kind), body


def ask(port: int, request: dict[str, Any], token: str = "") -> tuple[int, str]:
    """Status and reason of one request, straight to loopback whatever proxy is set; -1 when nobody answers."""
    kind, body = encoded(request)
    headers = {"Content-Type": kind, **({"Authorization": f"Bearer {token}"} if token else {})}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SEC)
    try:
        connection.request(request["method"], request["path"], body, headers)
        answer = connection.getresponse()
        return answer.status, reason(answer.read()) or answer.reason
    except (OSError, http.client.HTTPException) as error:
        return -1, str(error) or type(error).__name__
    finally:
        connection.close()


def reason(body: bytes) -> str:
    """The message of an error, else an empty string."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return ""


def patiently(seconds: int, again: tuple[int, ...], *request: Any) -> tuple[int, str]:
    deadline = time.monotonic() + seconds
    while (answer := ask(*request))[0] in again and time.monotonic() < deadline:
        time.sleep(PAUSE_SEC)
    return answer


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "port": {"type": "int", "required": True},
            "ready_port": {"type": "int", "required": True},
            "token": {"type": "str", "required": True, "no_log": True},
            "requests": {"type": "list", "elements": "dict", "required": True},
            "patience": {"type": "int", "default": 45},
        },
        supports_check_mode=True,
    )
    given = module.params
    ready = {"method": "GET", "path": "/readyz", "format": "json", "body": {}}
    status, said = patiently(given["patience"], (-1, 503), given["ready_port"], ready)
    failures = [] if status == 200 else [f"/readyz: {status}, {said}"]
    for request in [] if failures else given["requests"]:
        status, said = patiently(given["patience"], (404, 503), given["port"], request, given["token"])
        if status not in (200, 202):
            failures.append(f"{request['path']} {request['body'].get('model', '')}: {status}, {said}")
    module.exit_json(changed=False, failures=failures)


if __name__ == "__main__":
    main()
