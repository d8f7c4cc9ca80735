#!/usr/bin/python
"""Read what preflight judges a host by: system, TCP listeners, memory, free disk, and what was declared before."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import struct
from collections.abc import Container, Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.sys_info import get_distribution, get_distribution_version

DOCUMENTATION = """
module: host_state
short_description: Read the system, TCP listeners, memory, free disk and what an earlier run declared
description:
  - Changes nothing. Without root, a listener of another user has no process.
  - Ours is a process with APPLIANCE_REVISION in its environment, or one that cannot be read; on a Mac every process.
options:
  path: {description: Directory whose disk is asked; it need not exist, type: path, required: true}
  services_json: {description: The services.json of an earlier run; it need not exist, type: path, required: true}
  urls: {description: Addresses of servers that are asked, type: list, elements: str, default: []}
  rules: {description: File of the firewall's rules that an earlier run left; it need not exist, type: path}
author: AI Appliance
"""

EXAMPLES = """
- name: Read the state of the host
  host_state:
    path: "{{ appliance_lib }}"
    services_json: "{{ appliance_etc }}/services.json"
  register: appliance_host_state
"""

RETURN = """
listeners: {description: "Address, port, pid (0 unknown), name, command, ours of each", returned: always, type: list}
free_mb: {description: Free disk space in MB, returned: always, type: int}
silent: {description: "By address, why a server of O(urls) does not answer", returned: always, type: dict}
services: {description: Keys of the services that were declared before, returned: always, type: list}
ansible_facts: {description: The facts of M(setup) that are used, returned: always, type: dict}
rules: {description: The firewall's rules of an earlier run; empty when there were none, returned: always, type: str}
"""

MARK = b"APPLIANCE_REVISION="  # role service gives it to every process
UNKNOWN = {"pid": 0, "name": "", "command": "", "ours": True}
LISTEN = "0A"  # TCP_LISTEN of include/net/tcp_states.h, as /proc/net/tcp prints it


def linux_listeners(proc: Path) -> Iterator[dict[str, Any]]:
    sockets = {}
    for table in ("tcp", "tcp6"):
        path = proc / "net" / table
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            fields = line.split()
            if fields[3] == LISTEN:
                sockets[fields[9]] = _address(fields[1])
    holders = dict(_holders(proc, sockets.keys()))
    for inode, (address, port) in sockets.items():
        yield {"address": address, "port": port, **holders.get(inode, UNKNOWN)}


def _address(text: str) -> tuple[str, int]:
    """`0100007F:2260` is 127.0.0.1 and 8800: words of 32 bits in the host's byte order."""
    words, port = text.split(":")
    packed = b"".join(struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed), int(port, 16)


def _holders(proc: Path, inodes: Container[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for process in proc.iterdir():
        if not process.name.isdigit():
            continue
        try:
            links = list(_links(process / "fd"))
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            name = (process / "comm").read_text().strip()
            ours = any(line.startswith(MARK) for line in (process / "environ").read_bytes().split(b"\0"))
        except OSError:  # gone meanwhile, or another user's
            continue
        for link in links:
            if link.startswith("socket:[") and link[8:-1] in inodes:
                yield link[8:-1], {"pid": int(process.name), "name": name, "command": command, "ours": ours}


def _links(directory: Path) -> Iterator[str]:
    for link in directory.iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            yield str(link.readlink())


def darwin_listeners(module: AnsibleModule) -> Iterator[dict[str, Any]]:
    """By lsof's fields: p a process, n one of its sockets, such as `n127.0.0.1:8800` or `n*:22`."""
    _, output, _ = module.run_command(["/usr/sbin/lsof", "-nP", "-iTCP", "-sTCP:LISTEN", "-Fpcn"])
    holder: dict[str, Any] = {}
    for line in output.splitlines():
        kind, value = line[:1], line[1:]
        if kind == "p":
            _, command, _ = module.run_command(["/bin/ps", "-o", "command=", "-p", value])
            holder = {"pid": int(value), "command": command.strip(), "ours": True}
        elif kind == "c":
            holder["name"] = value
        elif found := re.fullmatch(r"n(.+):(\d+)", line):
            yield {"address": found[1].strip("[]").replace("*", "0.0.0.0"), "port": int(found[2]), **holder}  # noqa: S104 - what lsof calls *


def free_mb(path: Path) -> int:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    return shutil.disk_usage(existing).free // 1_000_000


def silence(url: str) -> str:
    """Why a server does not answer; empty when it does, whatever it says."""
    try:
        with urlopen(url, timeout=5):  # noqa: S310 - preflight lets http and https pass
            return ""
    except HTTPError as error:
        error.close()
        return ""
    except (OSError, HTTPException) as error:
        return str(getattr(error, "reason", error))


def facts() -> dict[str, Any]:
    """By the names and with the values that Ansible's module `setup` gives them."""
    system = platform.system()
    darwin = system == "Darwin"
    return {
        "system": system,
        "distribution": "MacOSX" if darwin else get_distribution(),
        "distribution_version": platform.mac_ver()[0] if darwin else get_distribution_version(),
        "service_mgr": "launchd" if darwin else first_process(),
        "memtotal_mb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        **({"pkg_mgr": "apt"} if Path("/usr/bin/apt-get").exists() else {}),
    }


def first_process() -> str:
    return "systemd" if Path("/run/systemd/system").is_dir() else Path("/proc/1/comm").read_text().strip()


def declared(path: Path) -> list[str]:
    return list(json.loads(path.read_text())["services"]) if path.exists() else []


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "services_json": {"type": "path", "required": True},
            "rules": {"type": "path"},
            "urls": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    proc = Path("/proc")
    found = linux_listeners(proc) if (proc / "net/tcp").exists() else darwin_listeners(module)
    services_json = Path(module.params["services_json"])
    rules = Path(module.params["rules"] or "/dev/null")
    try:
        services = declared(services_json)
    except (OSError, ValueError, LookupError, TypeError):
        module.fail_json(msg=f"{services_json} was not written by an earlier run; move it away and run again")
    silent = {url: reason for url in module.params["urls"] if (reason := silence(url))}
    for url, reason in silent.items():
        module.warn(f"{url} does not answer ({reason}); the gateway will ask it again and again")
    module.exit_json(
        changed=False,
        silent=silent,
        listeners=sorted(found, key=lambda item: (item["port"], item["address"])),
        ansible_facts=facts(),
        free_mb=free_mb(Path(module.params["path"])),
        services=services,
        rules=rules.read_text() if rules.exists() else "",
    )


if __name__ == "__main__":
    main()
