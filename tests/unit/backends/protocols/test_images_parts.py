"""What images are made of, without I/O: formats, the choice of a model, the placeholder, and each adapter's talk."""

from __future__ import annotations

import zlib
from dataclasses import replace
from struct import unpack_from

import orjson
import pytest
from gateway.backends.protocols import a1111, comfyui, image_parts, invokeai
from gateway.backends.protocols.base import AnswerError
from gateway.backends.protocols.image_formats import PNG, SEGMENTS_MAX, Size, has_alpha, kind_of, size_of
from gateway.backends.protocols.image_request import ImageRequest, Upload, read_request
from gateway.backends.protocols.steps import Abandoned, Ask, Reply
from gateway.errors import ApiError
from gateway.features.images import mock
from gateway.features.images.choice import choose_model
from gateway.features.images.settings import ImageSettings
from hypothesis import given
from hypothesis import strategies as st

from tests.support.faces.images import png

WEBP = b"RIFF\x1a\0\0\0WEBP"
JPEG = b"\xff\xd8\xff\xe0\0\x04JF\xff\xff\xc4\0\x02\xff\xc2\0\x0b\x08\0\x20\0\x40\x01\x01\x11\0"
PNG_OF_NO_WIDTH = png(1, 1)[:16] + bytes(4) + png(1, 1)[20:]
PLAIN = ImageSettings(images_openai_model="usual", images_openai_model_fast="quick", images_openai_model_slow="fine")
MODELS = PLAIN.model_copy(update={"images_enable_request_type": True})


@pytest.mark.parametrize(
    ("model", "prompt", "models", "chosen", "reason"),
    [
        ("mine", "a realistic cat", MODELS, "mine", "request:model"),
        ("Auto", "a cat", MODELS, "quick", "policy:images->fast"),
        ("", "a cat", MODELS, "quick", "policy:images->fast"),
        ("auto", "A Photo-realistic cat", MODELS, "fine", "policy:images->slow"),
        ("", "DSLR, 35mm", MODELS, "fine", "policy:images->slow"),
        ("", "cinematic light", MODELS, "fine", "policy:images->slow"),
        ("", "soft bokeh", MODELS, "fine", "policy:images->slow"),
        ("", "an unrealistic, photogenic cat", MODELS, "quick", "policy:images->fast"),
        ("", "a realistic cat", PLAIN, "usual", "config:model"),
        ("auto", "a cat", PLAIN, "usual", "config:model"),
        ("mine", "a cat", PLAIN, "mine", "request:model"),
        ("", "a cat", ImageSettings(), "", "omit:model"),
        ("auto", "a cat", ImageSettings(), "", "omit:model"),
    ],
)
def test_choice_of_a_model(model: str, prompt: str, models: ImageSettings, chosen: str, reason: str) -> None:
    assert choose_model(model, prompt, models) == (chosen, reason)


@pytest.mark.parametrize(
    ("data", "kind", "size"),
    [
        (png(3, 5), "png", (3, 5)),
        (png(3, 5)[:24], "png", (3, 5)),
        (png(3, 5)[:23], "png", None),
        (JPEG, "jpg", (64, 32)),
        (JPEG[:12], "jpg", None),
        (WEBP + b"VP8X\x0a\0\0\0\0\0\0\0\x3f\0\0\x1f\0\0", "webp", (64, 32)),
        (WEBP + b"VP8L\x0a\0\0\0\x2f" + (63 | 31 << 14).to_bytes(4, "little") + bytes(5), "webp", (64, 32)),
        (WEBP + b"VP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a\x40\0\x20\0", "webp", (64, 32)),
        (WEBP + bytes(20), "webp", None),
        (b"<svg xmlns='x'/>", "svg", None),
        (b"\xef\xbb\xbf\n<?xml version='1.0'?>\n<svg/>", "svg", None),
        (b"<?xml version='1.0'?><html/>", None, None),
        (b"GIF89a", None, None),
        (b"", None, None),
    ],
)
def test_first_bytes_of_a_file(data: bytes, kind: str | None, size: tuple[int, int] | None) -> None:
    assert kind_of(data) == kind
    assert size_of(data) == size


@given(st.sampled_from([b"", png(1, 1)[:8], b"\xff\xd8\xff", WEBP, b"<?xml"]), st.binary(max_size=60))
def test_any_bytes_have_a_kind_or_none(head: bytes, rest: bytes) -> None:
    assert kind_of(head + rest) in (None, "png", "jpg", "webp", "svg")
    size_of(head + rest)
    has_alpha(head + rest)


def test_alpha_is_in_the_header() -> None:
    assert has_alpha(png(1, 1, alpha=True))
    assert not has_alpha(png(1, 1))
    assert not has_alpha(JPEG)


def test_size_of_a_jpeg_is_looked_for_within_bounds() -> None:
    """A file may be nothing but the bytes that fill the gaps between its segments."""
    head, size = JPEG[:8], JPEG[8:]
    assert size_of(head + b"\xff" * 100 + size) == (64, 32)
    assert size_of(head + b"\xff" * SEGMENTS_MAX + size) is None


def test_image_without_pixels_is_damaged() -> None:
    empty = Upload("cat.png", "image/png", PNG_OF_NO_WIDTH)
    with pytest.raises(ApiError, match="'image': is damaged"):
        read_request({"prompt": "a dog"}, "", 1_000, (empty,))


@given(
    st.text(min_size=1, max_size=900), st.dictionaries(st.sampled_from(["style", "seed", "x"]), st.text(max_size=99))
)
def test_placeholder_is_a_png_that_depends_on_all_that_is_asked_for(prompt: str, fields: dict[str, str]) -> None:
    request = ImageRequest(prompt, 2, Size(31, 17), "", fields)
    image, other = mock.draw(request).images
    assert mock.draw(request).images == [image, other]
    cat = Upload("cat.png", "image/png", png(8, 8))
    for more in ({"fields": {**fields, "other": 1}}, {"images": (cat,)}, {"mask": cat}):
        assert image not in (other, mock.draw(replace(request, **more)).images[0])
    assert size_of(image) == Size(31, 17)
    at, pixels = len(PNG), b""
    while at < len(image):
        length, kind = unpack_from(">I4s", image, at)
        data = image[at + 8 : at + 8 + length]
        assert unpack_from(">I", image, at + 8 + length)[0] == zlib.crc32(kind + data)
        pixels += data if kind == b"IDAT" else b""
        at += length + 12
    assert len(zlib.decompress(pixels)) == 17 * (31 + 1)


def request() -> ImageRequest:
    return read_request({"prompt": "a cat", "n": 2, "size": "64x64"}, "", 10**6)


def test_a1111_interrupts_its_own_task_only() -> None:
    def after(*states: dict[str, bool]) -> list[str]:
        steps = a1111.paint(request())
        ask = next(steps)
        assert isinstance(ask, Ask)
        task = orjson.loads(ask.body)["force_task_id"]
        asked: list[str] = []
        step = steps.throw(Abandoned())
        answers = iter(states)
        try:
            while True:
                if isinstance(step, Ask):
                    asked.append(step.path)
                    if step.path == "/internal/progress":
                        assert orjson.loads(step.body)["id_task"] == task
                        step = steps.send(Reply(200, orjson.dumps(next(answers))))
                        continue
                step = steps.send(Reply(200, b"{}"))
        except Abandoned:
            return asked

    progress, interrupt = "/internal/progress", "/sdapi/v1/interrupt"
    assert after({"active": True}) == [progress, interrupt]
    assert after({"active": False, "queued": False}) == [progress]
    assert after({"queued": True}, {"queued": True}, {"active": True}) == [progress, progress, progress, interrupt]


def test_a1111_without_pages_is_left_alone() -> None:
    steps = a1111.paint(request())
    next(steps)
    step = steps.throw(Abandoned())
    assert isinstance(step, Ask)
    assert step.path == "/internal/progress"
    with pytest.raises(Abandoned):
        steps.send(Reply(404, b'{"detail":"Not Found"}'))


def test_invokeai_keeps_no_upload_of_a_job_that_was_left() -> None:
    picture = Upload("a.png", "image/png", png(64, 64))
    steps = invokeai.paint(ImageRequest("a cat", 1, None, "", {}, (picture,)))
    next(steps)
    steps.send(Reply(200, orjson.dumps({"models": [{"name": "a", "base": "sd-1"}]})))
    enqueue = steps.send(Reply(201, b'{"image_name": "source.png"}'))
    assert isinstance(enqueue, Ask)
    batch = orjson.loads(enqueue.body)["batch"]["batch_id"]
    cancel = steps.throw(Abandoned())
    assert isinstance(cancel, Ask)
    assert (cancel.path, orjson.loads(cancel.body)) == (f"{invokeai.QUEUE}/cancel_by_batch_ids", {"batch_ids": [batch]})
    assert steps.send(Reply(200, b"{}")) == Ask("DELETE", "/api/v1/images/i/source.png")
    with pytest.raises(Abandoned):
        steps.send(Reply(500, b""))


def test_batch_that_was_cancelled_on_the_server_is_told() -> None:
    steps = invokeai.paint(request())
    next(steps)
    replies = (
        {"models": [{"name": "a", "base": "sd-1"}]},
        {"item_ids": [7, 8]},
        {"failed": 0, "canceled": 1, "completed": 1},
        {"status": "completed"},
        {"status": "canceled"},
    )
    for reply in replies:
        cancel = steps.send(Reply(200, orjson.dumps(reply)))
    assert isinstance(cancel, Ask)
    assert cancel.path == f"{invokeai.QUEUE}/cancel_by_batch_ids"
    with pytest.raises(AnswerError, match="the batch was cancelled there"):
        steps.send(Reply(200, b"{}"))


@pytest.mark.parametrize("queue", [Reply(500, b""), Reply(200, b"<html>")])
def test_failure_of_a_graph_is_told_whatever_the_queue_says_then(queue: Reply) -> None:
    steps = comfyui.paint(request())
    next(steps)
    steps.send(Reply(200, b'["a.safetensors"]'))
    steps.send(Reply(200, b'{"prompt_id": "1"}'))
    error = ["execution_error", {"exception_message": "out of memory"}]
    entry = {"status": {"status_str": "error", "messages": [error]}}
    delete = steps.send(Reply(200, orjson.dumps({"1": entry})))
    assert delete == Ask("POST", "/queue", b'{"delete":["1"]}')
    assert steps.send(Reply(200, b"")) == Ask("GET", "/queue")
    with pytest.raises(AnswerError, match="out of memory"):
        steps.send(queue)


def test_upload_of_a_hostile_name_stays_one_part() -> None:
    upload = Upload('a"\r\nX-Evil: 1.png', "image/png", b"data")
    body, content_type = image_parts.multipart([("image", upload), ("prompt", "x\r\n--y")])
    boundary = content_type.rpartition("=")[2].encode()
    assert body.count(b"--" + boundary) == 3
    assert b"\r\nX-Evil" not in body
