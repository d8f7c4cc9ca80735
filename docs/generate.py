"""Writes what the documentation repeats: ports, settings, metrics, failures, protocols, routes, READMEs of the roles,
and which fields the tests prove to work with which backends.

python docs/generate.py            writes what is stale
python docs/generate.py --check    names it and exits with 1
"""

import argparse
import re
import secrets
import sys
import tempfile
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import proofs
import yaml
from gateway.app import FEATURES, App, load_settings, sections
from gateway.backends.failures import FAILURES
from gateway.backends.protocols import PROTOCOLS
from gateway.observe.metrics import FAMILIES
from pydantic import SecretStr
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
KINDS: Mapping[type, str] = {
    bool: "yes or no",
    int: "whole number",
    float: "number",
    str: "text",
    SecretStr: "secret",
    Path: "path",
    tuple: "list",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def code(value: Any) -> str:
    return f"`{value}`" if value not in (None, "") else ""


def ports(catalog: Mapping[str, Any]) -> str:
    rows = [
        [
            code(key) if listener is entry else f"{code(key)} {name}",
            str(listener.get("port") or code(listener.get("socket") or listener["url"])),
            code(listener["health"]),
            "" if "url" in entry else ", ".join(listener.get("allow_from", [])) or "this host",
            code(entry.get("unit")),
            entry["description"] if listener is entry else "",
        ]
        for key, entry in catalog.items()
        for name, listener in {"": entry, **entry.get("listeners", {})}.items()
    ]
    return table(["service", "port", "health", "open to", "unit", ""], rows)


def settings() -> str:
    headings: dict[str, list[list[str]]] = {}
    for section in sections():
        for name, field in section.model_fields.items():
            row = [code(name.upper()), kind(field), code(default(field)), field.description or ""]
            headings.setdefault(section.heading, []).append(row)
    return "\n".join(
        f"## {heading}\n\n" + table(["variable", "kind", "default", ""], rows) for heading, rows in headings.items()
    )


def metrics() -> str:
    rows = [
        [
            code(family.name + ("_total" if family.kind == "counter" else "")),
            family.kind,
            ", ".join(map(code, family.labels)),
            family.help,
        ]
        for family in (*FAMILIES, *(family for feature in FEATURES for family in feature.families))
    ]
    return table(["metric", "kind", "labels", ""], rows)


def failures() -> str:
    rows = [
        [
            what,
            str(failure.status or "the same"),
            " or ".join(["its own"] * failure.is_own + [code(failure.code)] * bool(failure.code)),
            str(failure.retry_after or ""),
            code(failure.kind.format(n="N")),
            failure.effect.value,
        ]
        for what, failure in FAILURES.items()
    ]
    return table(["failure", "status", "`code`", "`Retry-After`", "`kind`", "the backend then"], rows)


def protocols() -> str:
    rows = [
        [code(each.name), ", ".join(sorted(each.capabilities)), code(each.probe), code(each.images_backend), each.about]
        for each in PROTOCOLS
    ]
    return table(["protocol", "capabilities", "probed at", "`IMAGES_BACKEND`", ""], rows)


def openapi() -> dict[str, Any]:
    """The page that a gateway shows at /openapi.json."""
    with tempfile.TemporaryDirectory() as name:
        backends = Path(name) / "backends.yaml"
        backends.write_text("backends: {a: {class: a, base_url: http://127.0.0.1, supported_capabilities: [chat]}}")
        settings = load_settings(gateway_bearer_token=secrets.token_urlsafe(), gateway_backends_path=backends)
        return App(settings).pages.made().openapi()


def routes() -> str:
    page = openapi()
    tags = [tag["name"] for tag in page["tags"]]
    found = sorted(
        (tags.index(operation["tags"][0]), path, method.upper(), operation)
        for path, operations in page["paths"].items()
        for method, operation in operations.items()
    )
    rows = [
        [code(f"{method} {path}"), operation["summary"] + ("" if "security" in operation else "; no token")]
        for _, path, method, operation in found
    ]
    return table(["route", ""], rows)


def compatibility() -> str:
    found = list(proofs.sections(proofs.collect()))
    links = " · ".join(f"[`{section.route}`](#{section.route.replace('/', '')})" for section in found)
    return f"{links}\n\n" + "\n".join(map(_of_route, found))


def _of_route(section: proofs.Section) -> str:
    text = f"## `{section.route}`\n"
    if section.rows:
        rows = [[code(field), *words] for field, *words in section.rows]
        text += "\n" + table(["field", *map(code, section.kinds)], rows)
    for word, kind, fields in section.alone:
        text += (
            f"\n{'In part with' if word == proofs.IN_PART else 'With'} {code(kind)}: {', '.join(map(code, fields))}.\n"
        )
    if section.refused:
        text += f"\nRefused: {', '.join(map(code, section.refused))}.\n"
    return text


def kind(field: FieldInfo) -> str:
    annotation: Any = field.annotation
    if isinstance(annotation, types.UnionType):  # X | None
        annotation = next(part for part in typing.get_args(annotation) if part is not types.NoneType)
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(code(value) or "nothing" for value in typing.get_args(annotation))
    return KINDS[typing.get_origin(annotation) or annotation]


def default(field: FieldInfo) -> str:
    value = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else str(value)


def role_readme(role: str, specs: Mapping[str, Any]) -> str:
    """The README of a role, from its argument specs, whose entry points are `main` and others."""
    return f"# {role}\n\nGenerated from `meta/argument_specs.yml` by `docs/generate.py`.\n" + "".join(
        part for name, spec in specs.items() for part in _entry_point(name, spec)
    )


def _entry_point(name: str, spec: Mapping[str, Any]) -> Iterator[str]:
    if name != "main":
        yield f"\n## `tasks_from: {name}`\n"
    yield f"\n{markdown(spec['short_description'])}.\n"
    if "description" in spec:
        yield f"\n{markdown(spec['description'])}\n"
    if spec.get("options"):
        yield "\n" + table(["variable", "type", "default", ""], _options("", spec["options"]))


def _options(prefix: str, options: Mapping[str, Any]) -> Iterator[list[str]]:
    """A row for each option; what a dict or a list of dicts holds follows it, as `outer.inner`."""
    for name, option in options.items():
        yield [code(prefix + name), *_option(option)]
        yield from _options(f"{prefix}{name}.", option.get("options", {}))


def _option(option: Mapping[str, Any]) -> list[str]:
    kind = option["type"] + (f" of {option['elements']}" if "elements" in option else "")
    if "choices" in option:
        kind = ", ".join(map(code, option["choices"]))
    value = option.get("default", "")
    shown = "required" if option.get("required") else code(str(value).lower() if isinstance(value, bool) else value)
    return [kind, shown, markdown(option["description"])]


def markdown(text: str | Sequence[str]) -> str:
    joined = text if isinstance(text, str) else " ".join(text)
    return re.sub(r"C\((.+?)\)", r"`\1`", " ".join(joined.split()))


def pages() -> Iterator[tuple[Path, str]]:
    """Each generated file with the text that it should have."""
    catalog = yaml.safe_load((ROOT / "playbooks/group_vars/all/services.yml").read_text())["appliance_catalog"]
    made = {
        "ports": lambda: ports(catalog),
        "settings": settings,
        "metrics": metrics,
        "failures": failures,
        "protocols": protocols,
        "routes": routes,
        "compatibility": compatibility,
    }
    for page in sorted((ROOT / "docs").glob("*.md")):
        yield page, MARKED.sub(lambda found: f"{found[1]}\n{made[found[2]]()}\n{found[3]}", page.read_text())
    for specs in sorted((ROOT / "roles").glob("*/meta/argument_specs.yml")):
        role = specs.parents[1]
        yield role / "README.md", role_readme(role.name, yaml.safe_load(specs.read_text())["argument_specs"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 when a page is stale")
    check = parser.parse_args().check
    stale = [(path, text) for path, text in pages() if not path.exists() or path.read_text() != text]
    for path, text in stale:
        if check:
            sys.stderr.write(f"{path.relative_to(ROOT)} is stale; type: python docs/generate.py\n")
        else:
            path.write_text(text)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
