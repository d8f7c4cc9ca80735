"""Stored files are served so that a browser runs nothing of them."""

from __future__ import annotations

import asyncio

import pytest
from gateway.features.images.settings import ImageSettings
from gateway.features.images.store import MediaStore

from tests.support.faces.images import png
from tests.support.gateways import Gateway

PICTURE = png(2, 2)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def put(served: Gateway, data: bytes, suffix: str) -> str:
    """The path of a file that the gateway finds stored."""
    kept = MediaStore(ImageSettings(ui_image_dir=served.home / "data/ui_images"))
    return f"/ui/images/{asyncio.run(kept.save(data, suffix))}"


@pytest.mark.parametrize("headers", [{"Authorization": ""}, {"Authorization": "Bearer not-a-token"}, {}], ids=str)
def test_picture_is_served_to_whoever_knows_its_name(served: Gateway, headers: dict[str, str]) -> None:
    path = put(served, PICTURE, "png")
    answer = served.client.get(path, headers=headers)
    assert (answer.status_code, answer.content) == (200, PICTURE)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"].startswith("private, max-age=")
    assert "content-disposition" not in answer.headers
    head = served.client.head(path, headers=headers)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(PICTURE)))
    assert served.client.post(path).status_code == 405


def test_svg_is_served_inert(served: Gateway) -> None:
    svg = served.client.get(put(served, SVG, "svg"))
    assert svg.headers["content-disposition"] == "attachment"
    assert svg.headers["content-security-policy"] == "sandbox; default-src 'none'"


@pytest.mark.parametrize("name", [f"{'0' * 64}.png", "x.png", "..%2F..%2Fbackends.yaml"])
def test_file_that_is_not_there(served: Gateway, name: str) -> None:
    answer = served.client.get(f"/ui/images/{name}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_ranges_are_answered_as_the_page_says(served: Gateway) -> None:
    path = put(served, PICTURE, "png")
    described = served.client.get("/openapi.json").json()["paths"]["/ui/images/{name}"]["get"]["responses"]
    for wanted, status, kind in (
        ("bytes=0-3", 206, "image/png"),
        ("bytes=0-3,8-9", 206, "multipart/byteranges"),
        ("bytes=9-3", 400, "text/plain"),
        ("bytes=100000-", 416, "text/plain"),
    ):
        answer = served.client.get(path, headers={"Range": wanted})
        assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (status, kind)
        assert kind in described[str(status)]["content"]
        assert answer.content == PICTURE[:4] or kind != "image/png"
