"""Every role has the same shape, and its argument specs say what its defaults are."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.ansible_run import ROOT
from tests.support.services import CATALOG, EXPECTED

SHARED = {"service", "firewall", "release", "product", "models"}
ROLES = sorted(path.parent for path in (ROOT / "roles").glob("*/meta"))


def specs(role: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    return found


def by_name(role: Path) -> str:
    return role.name


@pytest.mark.parametrize("role", ROLES, ids=by_name)
def test_specs_and_defaults_have_the_same_keys_and_values(role: Path) -> None:
    options = specs(role)["main"].get("options") or {}
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text()) or {}
    optional = {name: option for name, option in options.items() if not option.get("required")}
    assert set(optional) == set(defaults)
    for name, value in defaults.items():
        if "default" in optional[name] or "{{" not in str(value):
            assert optional[name].get("default") == value, name


@pytest.mark.parametrize("role", ROLES, ids=by_name)
def test_every_variable_is_described_typed_and_named_after_its_role(role: Path) -> None:
    prefix = role.name.replace("-", "_") + "_"
    for entry_point in specs(role).values():
        assert entry_point["short_description"]
        for name, option in (entry_point.get("options") or {}).items():
            assert name.startswith(prefix)
            assert option["description"], name
            assert option["type"], name


@pytest.mark.parametrize("role", ROLES, ids=by_name)
def test_a_role_has_the_anatomy_of_all_roles(role: Path) -> None:
    expected = ["defaults/main.yml", "meta/argument_specs.yml", "meta/main.yml", "README.md"]
    expected += ["tasks/main.yml" if role.name in SHARED else "vars/main.yml"]
    assert [path for path in expected if not (role / path).is_file()] == []
    meta = yaml.safe_load((role / "meta/main.yml").read_text())["galaxy_info"]
    assert (meta["author"], meta["license"]) == ("AI Appliance", "Apache-2.0")


def test_the_catalog_has_a_role_for_each_service_and_no_role_is_left_over() -> None:
    products = {role.name.replace("-", "_") for role in ROLES} - SHARED
    assert products == {key for key, entry in CATALOG.items() if "url" not in entry}


@pytest.mark.parametrize("service", EXPECTED)
def test_a_descriptor_says_what_is_expected_of_its_service(service: str) -> None:
    descriptor = yaml.safe_load((ROOT / "roles" / service / "vars/main.yml").read_text())[f"{service}_product"]
    known = specs(ROOT / "roles/product")["main"]["options"]["product_descriptors"]["options"]
    assert set(descriptor) <= set(known)
    assert set(descriptor["release"]) <= set(known["release"]["options"])
    assert set(descriptor.get("writes", [])) == EXPECTED[service].writes


def test_a_roles_defaults_hold_no_fact_of_the_catalog() -> None:
    for role in ROLES:
        defaults = yaml.safe_load((role / "defaults/main.yml").read_text()) or {}
        facts = {f"{role.name.replace('-', '_')}_{fact}" for fact in ("port", "bind", "host", "allow_from")}
        assert not facts & set(defaults)


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_stale_page_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    from docs import generate

    page = tmp_path / "docs/services.md"
    page.parent.mkdir()
    page.write_text("<!-- generated: ports -->\nold\n<!-- end -->\n")
    (tmp_path / "playbooks/group_vars/all").mkdir(parents=True)
    (tmp_path / "playbooks/group_vars/all/services.yml").write_text(yaml.safe_dump({"appliance_catalog": CATALOG}))
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1
    assert capsys.readouterr().err == "docs/services.md is stale; type: python docs/generate.py\n"
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0
    assert "| `llamacpp` | 8088 |" in page.read_text()
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 0
