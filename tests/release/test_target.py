"""Platform tags and names are the host's, whatever machine works them out."""

from collections.abc import Mapping

import pytest

from release.target import Target


def markers(system: str = "linux", machine: str = "x86_64", python: str = "3.11") -> Mapping[str, str]:
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": system.capitalize(),
        "python_full_version": f"{python}.2",
        "python_version": python,
        "sys_platform": system,
    }


def test_a_linux_host_takes_every_manylinux_level_up_to_its_glibc() -> None:
    target = Target.from_facts({"markers": markers(), "glibc": "2.36", "macos": ""})
    assert target.name == "linux-x86_64-glibc2.36-cp311"
    platforms = target.platforms()
    assert platforms[0] == "manylinux_2_36_x86_64"
    assert platforms[-2:] == ["manylinux_2_5_x86_64", "manylinux1_x86_64"]
    assert platforms.index("manylinux_2_17_x86_64") + 1 == platforms.index("manylinux2014_x86_64")
    assert "manylinux_2_37_x86_64" not in platforms


def test_manylinux_begins_at_2014_on_other_machines() -> None:
    target = Target.from_facts({"markers": markers(machine="aarch64"), "glibc": "2.31", "macos": ""})
    assert target.platforms()[-2:] == ["manylinux_2_17_aarch64", "manylinux2014_aarch64"]


def test_a_mac_takes_older_systems_and_universal_wheels() -> None:
    target = Target.from_facts({"markers": markers("darwin", "arm64", "3.13"), "glibc": "", "macos": "14.4.1"})
    assert target.name == "darwin-arm64-macos14-cp313"
    assert {"macosx_14_0_arm64", "macosx_11_0_arm64", "macosx_11_0_universal2"} <= set(target.platforms())
    assert "macosx_15_0_arm64" not in target.platforms()


def test_a_host_without_glibc_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^no wheels for linux here: use Linux with glibc, or macOS$"):
        Target.from_facts({"markers": markers(), "glibc": "", "macos": ""})
