"""Stored files: named by their bytes, kept for a time and up to a total, served so that a browser runs none of it."""

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
from tests.support.gateways import Gateway, gateway, write_files
from tests.support.upstream import Upstream
from tests.support.waiting import until

PICTURE = png(2, 2)
NAME = hashlib.sha256(PICTURE).hexdigest()
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def store(directory: Path, ttl_sec: int = 60, max_bytes: int = 1_000, max_total_bytes: int = 10_000) -> MediaStore:
    settings = ImageSettings(
        ui_image_dir=directory,
        ui_image_ttl_sec=ttl_sec,
        ui_image_max_bytes=max_bytes,
        ui_image_total_bytes=max_total_bytes,
    )
    return MediaStore(settings)


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
    kept = store(tmp_path, max_total_bytes=1_000)
    first, second = save(kept, b"a" * 400, age=20), save(kept, b"b" * 400, age=10)
    third = save(kept, b"c" * 400)
    assert names(tmp_path) == {second.name, third.name}
    assert not first.exists()
    # Also what an earlier process has left counts.
    fourth = save(store(tmp_path, max_total_bytes=1_000), b"d" * 400)
    assert names(tmp_path) == {third.name, fourth.name}


def test_a_token_evicts_only_its_own_beyond_a_fair_share(tmp_path: Path) -> None:
    kept = store(tmp_path, max_total_bytes=1_000)

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


@pytest.mark.parametrize("limits", [{"max_bytes": 9}, {"max_total_bytes": 9}])
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


def put(running: Gateway, data: bytes, suffix: str) -> str:
    kept = store(running.home / "data/ui_images")
    return f"/ui/images/{asyncio.run(kept.save(data, suffix))}"


def test_files_are_served_inert(tmp_path: Path, backend: Upstream) -> None:
    write_files(tmp_path, backend.url)
    with gateway(tmp_path) as running:
        path = put(running, PICTURE, "png")
        for headers in ({"Authorization": ""}, {"Authorization": "Bearer not-a-token"}, {}):
            answer = running.client.get(path, headers=headers)
            assert (answer.status_code, answer.content) == (200, PICTURE)
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"].startswith("private, max-age=")
        assert "content-disposition" not in answer.headers
        head = running.client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(PICTURE))
        part = running.client.get(path, headers={"Range": "bytes=0-3"})
        assert (part.status_code, part.content) == (206, PICTURE[:4])

        svg = running.client.get(put(running, SVG, "svg"))
        assert svg.headers["content-disposition"] == "attachment"
        assert svg.headers["content-security-policy"] == "sandbox; default-src 'none'"

        for missing in (f"/ui/images/{'0' * 64}.png", "/ui/images/x.png", "/ui/images/..%2F..%2Fbackends.yaml"):
            answer = running.client.get(missing)
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "not_found"
        assert running.client.post(path).status_code == 405


def test_ranges_are_answered_as_the_page_says(tmp_path: Path, backend: Upstream) -> None:
    write_files(tmp_path, backend.url)
    with gateway(tmp_path) as running:
        path = put(running, PICTURE, "png")
        described = running.client.get("/openapi.json").json()["paths"]["/ui/images/{name}"]["get"]["responses"]
        for wanted, status, kind in (
            ("bytes=0-3", 206, "image/png"),
            ("bytes=0-3,8-9", 206, "multipart/byteranges"),
            ("bytes=9-3", 400, "text/plain"),
            ("bytes=100000-", 416, "text/plain"),
        ):
            answer = running.client.get(path, headers={"Range": wanted})
            assert answer.status_code == status
            assert answer.headers["content-type"].partition(";")[0] == kind
            assert kind in described[str(status)]["content"]


def test_old_files_go_by_themselves(tmp_path: Path, backend: Upstream) -> None:
    write_files(tmp_path, backend.url)
    with gateway(tmp_path, UI_IMAGE_TTL_SEC="1") as running:
        directory = tmp_path / "data/ui_images"
        put(running, PICTURE, "png")
        until(lambda: not names(directory), "not swept")
