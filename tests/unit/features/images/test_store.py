"""Stored files: named by their bytes, kept for a time and up to a total, whole or not there."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from pathlib import Path

import pytest
from gateway.features.images.settings import ImageSettings
from gateway.features.images.store import PART, MediaStore

from tests.support.faces.images import png
from tests.support.waiting import until_async

PICTURE = png(2, 2)
NAME = hashlib.sha256(PICTURE).hexdigest()


def store(directory: Path, **settings: int) -> MediaStore:
    usual = {"ui_image_ttl_sec": 60, "ui_image_max_bytes": 1_000, "ui_image_total_bytes": 10_000}
    return MediaStore(ImageSettings.model_validate({"ui_image_dir": directory, **usual, **settings}))


def save(kept: MediaStore, data: bytes, age: float = 0) -> Path:
    """Stores a file that is `age` seconds old."""
    path = asyncio.run(kept.find(asyncio.run(kept.save(data, "png"))))
    assert path is not None
    os.utime(path, (time.time() - age,) * 2)
    return path


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_name_is_the_hash_of_the_bytes(tmp_path: Path) -> None:
    path = save(store(tmp_path / "new" / "directory"), PICTURE)
    assert path.name == f"{NAME}.png"
    assert path.read_bytes() == PICTURE
    assert path.stat().st_mode & 0o077 == 0


def test_same_bytes_are_one_file_and_young_again(tmp_path: Path) -> None:
    kept = store(tmp_path)
    path = save(kept, PICTURE, age=50)
    asyncio.run(kept.save(PICTURE, "png"))
    assert time.time() - path.stat().st_mtime < 50
    assert names(tmp_path) == {path.name}


def test_old_files_are_not_found_and_swept(tmp_path: Path) -> None:
    kept = store(tmp_path)
    old, young = save(kept, b"old", age=61), save(kept, b"young")
    assert asyncio.run(kept.find(old.name)) is None
    kept.sweep()
    assert names(tmp_path) == {young.name}


def test_oldest_make_room(tmp_path: Path) -> None:
    kept = store(tmp_path, ui_image_total_bytes=1_000)
    first, second = save(kept, b"a" * 400, age=20), save(kept, b"b" * 400, age=10)
    third = save(kept, b"c" * 400)
    assert names(tmp_path) == {second.name, third.name}
    assert not first.exists()
    # Also what an earlier process has left counts.
    fourth = save(store(tmp_path, ui_image_total_bytes=1_000), b"d" * 400)
    assert names(tmp_path) == {third.name, fourth.name}


def test_a_token_evicts_only_its_own_beyond_a_fair_share(tmp_path: Path) -> None:
    kept = store(tmp_path, ui_image_total_bytes=1_000)

    def paint(owner: str, *numbers: int) -> list[str]:
        return [asyncio.run(kept.save(bytes([number]) * 100, "png", owner)) for number in numbers]

    first = paint("modest", 1, 2)
    paint("greedy", *range(10, 40))
    assert {*first} < names(tmp_path)
    assert len(names(tmp_path)) == 10
    second = paint("third", *range(40, 80))
    assert {*first, *second[-4:]} < names(tmp_path)
    assert len(names(tmp_path)) == 10
    kept.sweep()
    assert len(kept._owners) == 10


@pytest.mark.parametrize("limits", [{"ui_image_max_bytes": 9}, {"ui_image_total_bytes": 9}])
def test_file_that_is_too_large_is_not_stored(tmp_path: Path, limits: dict[str, int]) -> None:
    with pytest.raises(OSError, match="larger than may be stored"):
        asyncio.run(store(tmp_path, **limits).save(bytes(10), "png"))
    assert names(tmp_path) == set()


def test_files_of_others_are_left_alone_and_those_of_the_earlier_system_swept(tmp_path: Path) -> None:
    for name in ("notes.txt", ".env", "1700000000_0123456789abcdef.png"):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (0, 0))
    store(tmp_path).sweep()
    assert names(tmp_path) == {"notes.txt", ".env"}


def test_what_a_killed_process_was_writing_goes_once_it_is_old(tmp_path: Path) -> None:
    old, young = tmp_path / f"{PART}old", tmp_path / f"{PART}young"
    old.write_bytes(PICTURE)
    young.write_bytes(PICTURE)
    os.utime(old, (0, 0))
    store(tmp_path).sweep()
    assert names(tmp_path) == {young.name}


def test_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(written: Path, _: Path) -> None:
        assert written.name.startswith(PART)
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        asyncio.run(store(tmp_path).save(PICTURE, "png"))
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    "name", ["", "x", ".env", "../.env", f"{NAME}", f"{NAME}.exe", f"{NAME}.png.png", f"{NAME[:-1]}.png", f"{NAME}.PNG"]
)
def test_no_other_name_opens_a_file(tmp_path: Path, name: str) -> None:
    save(store(tmp_path / "images"), PICTURE)
    (tmp_path / ".env").write_text("secret")
    if name and "/" not in name:
        (tmp_path / "images" / name).write_text("somebody else's")
    assert asyncio.run(store(tmp_path / "images").find(name)) is None


async def test_old_files_go_by_themselves(tmp_path: Path) -> None:
    kept = store(tmp_path, ui_image_ttl_sec=1)
    await kept.save(PICTURE, "png")
    await kept.start()
    await until_async(lambda: not names(tmp_path))
    await kept.stop()
