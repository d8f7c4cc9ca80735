"""What the firewall role decides: pure functions of its listeners and of what `firewall_state` read."""

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

Listener = Mapping[str, Any]
Found = Mapping[str, Any]

# What the templates appliance.nft.j2 and appliance.pf.j2 write for each listener.
NFT_RULE = re.compile(r'(?:ip6? saddr (\S+) )?tcp dport (\d+) (?:accept|drop) comment "([^/"]+)/([^"]+)"')
PF_TABLE = re.compile(r"table <appliance_(\d+)> const \{ (.*) \}")
PF_RULE = re.compile(r"# ([^/\s]+)/(\S+)\nblock .* to any port (\d+) flags")

TAG = "appliance"
DHCP_PORTS = {68, 546}


def openings(listeners: Iterable[Listener]) -> Iterator[tuple[str, int, str]]:
    """(address range, port, `service/name`) of every declared way in."""
    for listener in listeners:
        for source in listener["allow_from"]:
            yield source, int(listener["port"]), f"{listener['service']}/{listener['name']}"


def firewall_former(rules: str) -> list[Listener]:
    """The listeners that a rules file of ours guards: one for each port, whatever service has it now."""
    former: dict[int, dict[str, Any]] = {}

    def listener(port: str, service: str, name: str) -> dict[str, Any]:
        fresh = {"service": service, "name": name, "port": int(port), "allow_from": []}
        return former.setdefault(int(port), fresh)

    for source, port, service, name in NFT_RULE.findall(rules):
        listener(port, service, name)["allow_from"] += [source] if source else []
    tables = dict(PF_TABLE.findall(rules))
    for service, name, port in PF_RULE.findall(rules):
        listener(port, service, name)["allow_from"] += tables.get(port, "").split()
    return list(former.values())


def firewall_guarded(
    listeners: Iterable[Listener], former: Iterable[Listener], settled: bool, held: Iterable[Found]
) -> list[Listener]:
    """What the rules guard: the declared listeners, and `former` ones where a service may still listen.

    Before the services are `settled` where they are declared, each former port stays, with the networks that its former
    declaration, the present one of its service and that of the service to come have in common. After that a former port
    stays while a process of ours listens on it, according to `held`, the listeners of the module `host_state`.
    """
    declared = [{key: one[key] for key in ("service", "name", "port", "allow_from")} for one in listeners]
    present = {_name(one): one for one in declared}
    listening = {one["port"] for one in held if one["ours"]}
    guarded = {one["port"]: one for one in declared}
    for old in former:
        new, successor = present.get(_name(old)), guarded.get(old["port"])
        if new is not None and new is successor:
            continue  # the same listener at the same port: its present rule holds at once
        if settled and (successor or old["port"] not in listening):
            continue
        allowed = old["allow_from"]
        for other in filter(None, (new, successor)):
            allowed = _common(allowed, other["allow_from"])
        guarded[old["port"]] = {**old, "allow_from": allowed}
    return list(guarded.values())


def _name(listener: Listener) -> tuple[str, str]:
    return listener["service"], listener["name"]


def _common(some: Iterable[str], others: Sequence[str]) -> list[str]:
    """The networks that both lists hold. Two networks that overlap are one inside the other."""
    pairs = [(ipaddress.ip_network(one), ipaddress.ip_network(other)) for one in some for other in others]
    same = [(one, other) for one, other in pairs if one.version == other.version and one.overlaps(other)]
    return list(dict.fromkeys(str(max(pair, key=lambda network: network.prefixlen)) for pair in same))


def firewall_left(former: Iterable[Listener], held: Sequence[Found]) -> list[str]:
    """One line for each process of ours that listens on one of these ports."""
    return [
        f"{one['name'] or 'a process'} (pid {one['pid']}) of the appliance listens on port {old['port']}, which was "
        f"{old['service']}/{old['name']}'s; type: systemctl status {one['pid']}"
        for old in former
        for one in held
        if one["ours"] and one["port"] == old["port"]
    ]


def firewall_refusals(found: Found, listeners: Iterable[Listener]) -> list[str]:
    """One line for each way in that another nftables chain closes, with the rule to add.

    A chain of ufw's is not foreign while ufw is active: its rules are added through ufw.
    """
    objects = found["nftables"]
    return [
        f"{chain['family']} {chain['table']} {chain['name']} drops what it does not know; type: "
        f"nft insert rule {chain['family']} {chain['table']} {chain['name']} "
        f"{_family(source)} saddr {source} tcp dport {port} accept"
        for chain in (item["chain"] for item in objects if "chain" in item)
        if _is_foreign_drop(chain, found["ufw"])
        for source, port, _ in openings(listeners)
        if chain["family"] in ("inet", _family(source)) and not _lets_in(objects, chain, port)
    ]


def _family(source: str) -> str:
    return "ip6" if ":" in source else "ip"


def _is_foreign_drop(chain: Mapping[str, Any], ufw: bool) -> bool:
    ours = chain["table"] == TAG and chain["family"] == "inet"
    of_ufw = ufw and chain["table"] == "filter" and chain["name"] == "INPUT"
    return chain.get("hook") == "input" and chain.get("policy") == "drop" and not ours and not of_ufw


def _lets_in(objects: Iterable[Mapping[str, Any]], chain: Mapping[str, Any], port: int) -> bool:
    """Whether a rule in the chain's table accepts the port; from whom is its author's business."""
    rules = (item["rule"] for item in objects if "rule" in item)
    return any(
        rule["table"] == chain["table"]
        and rule["family"] == chain["family"]
        and any("accept" in part for part in rule["expr"])
        and any(_names_port(part["match"], port) for part in rule["expr"] if "match" in part)
        for rule in rules
    )


def _names_port(match: Mapping[str, Any], port: int) -> bool:
    if match["op"] != "==" or not isinstance(match["left"], dict):
        return False
    payload = match["left"].get("payload", {})
    return payload.get("field") == "dport" and _contains(match["right"], port)


def _contains(right: Any, port: int) -> bool:
    if isinstance(right, dict) and "set" in right:
        return any(_contains(member, port) for member in right["set"])
    if isinstance(right, dict) and "range" in right:
        low, high = right["range"]
        return bool(low <= port <= high)
    return bool(right == port)


def ufw_commands(found: Found, listeners: Iterable[Listener]) -> list[list[str]]:
    """The `ufw` commands, without the program's name, that turn our tagged rules into the declared ones.

    Rules without our tag are never touched. With ufw inactive none of ours stay.
    """
    declared = openings(listeners) if found["ufw"] else ()
    wanted = {(source, port): f"{TAG}: {what}" for source, port, what in declared}
    present = dict(filter(None, map(_own_ufw_rule, found["ufw_rules"])))
    # Adding an existing rule anew only replaces its comment.
    return [["delete", *_ufw_rule(*key)] for key in present if key not in wanted] + [
        [*_ufw_rule(*key), "comment", comment] for key, comment in wanted.items() if present.get(key) != comment
    ]


def _ufw_rule(source: str, port: int) -> list[str]:
    return ["allow", "proto", "tcp", "from", source, "to", "any", "port", str(port)]


def _own_ufw_rule(line: str) -> tuple[tuple[str, int], str] | None:
    """The key and the comment of a line such as `ufw allow from A to any port P proto tcp comment 'appliance: x/y'`."""
    pattern = rf"ufw allow from (\S+) to any port (\d+) proto tcp comment '({TAG}: [^']*)'"
    match = re.fullmatch(pattern, line.strip())
    return ((match[1], int(match[2])), match[3]) if match else None


def firewall_kept_ports(found: Found, ssh_port: int, keep: Iterable[int]) -> list[int]:
    """Ports that `firewall_default: drop` leaves open: SSH's, where sshd listens, and the operator's own."""
    of_sshd = [port for port, _, users in _sockets(found["sockets"]) if '"sshd"' in users]
    return sorted({int(ssh_port), *of_sshd, *map(int, keep)})


def firewall_cuts(found: Found, listeners: Sequence[Listener], kept: Iterable[int]) -> list[str]:
    """`address:port program` of each listener that `firewall_default: drop` closes; not ours, kept or on loopback."""
    known = {int(listener["port"]) for listener in listeners} | set(kept) | DHCP_PORTS
    return sorted(
        {
            f"{address}:{port} {users}".strip()
            for port, address, users in _sockets(found["sockets"])
            if port not in known and not re.match(r"127\.|\[::1\]|\[::ffff:127\.", address)
        }
    )


def _sockets(lines: Iterable[str]) -> Iterator[tuple[int, str, str]]:
    """(port, address, users) of lines of `ss -Hltunp`."""
    for line in lines:
        fields = line.split(maxsplit=6)
        address, _, port = fields[4].rpartition(":")
        yield int(port), address, fields[6] if len(fields) > 6 else ""


class FilterModule:
    """Ansible's way to find filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "firewall_former": firewall_former,
            "firewall_guarded": firewall_guarded,
            "firewall_left": firewall_left,
            "firewall_refusals": firewall_refusals,
            "ufw_commands": ufw_commands,
            "firewall_kept_ports": firewall_kept_ports,
            "firewall_cuts": firewall_cuts,
        }
