"""Edits of images through the gateway: forms, fields and files, by each kind of image server."""

from __future__ import annotations

import base64

import pytest
from gateway.backends.protocols.image_formats import size_of

from tests.support.faces.images import form, png
from tests.support.studio import (
    EDITS,
    MASK,
    NAMES_OF,
    PICTURE,
    SAMPLED,
    Studio,
    refusal,
)


@pytest.mark.proves(
    EDITS,
    *("image", "mask", "prompt", "n", "size", "quality", "input_fidelity", "background", "output_format", "user"),
    *("output_compression", "moderation", "seed", "steps", "strength"),
    backend="openai",
)
def test_edit_by_an_openai_server(studio: Studio) -> None:
    fields = {"n": "2", "size": "64x64", "quality": "high", "input_fidelity": "high", "other": "x", "user": "me"}
    fields |= {"background": "opaque", "output_format": "png", "output_compression": "9", "moderation": "low"}
    fields |= {"seed": "7", "steps": "3", "strength": "0.5"}
    answer = studio.edit("openai", ("image", PICTURE), ("mask", MASK), **fields)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 2
    parts = form(studio.servers["openai"].asked(EDITS)[0])
    sent = {name: [value.encode()] for name, value in {**fields, "prompt": "a dog"}.items()}
    assert parts == {**sent, "response_format": [b"b64_json"], "image": [PICTURE], "mask": [MASK]}


@pytest.mark.proves(EDITS, "image", backend="openai")
def test_edit_of_several_images(studio: Studio) -> None:
    second = png(32, 32, "second")
    assert studio.edit("openai", ("image[]", PICTURE), ("image[]", second)).status_code == 200
    assert form(studio.servers["openai"].asked(EDITS)[0])["image[]"] == [PICTURE, second]


def test_type_of_a_file_is_that_of_its_bytes(studio: Studio) -> None:
    """Clients that know no better say `application/octet-stream`, which servers refuse."""
    files = {"image": ("cat", PICTURE, "application/octet-stream")}
    answer = studio.gateway.client.post(EDITS, data={"prompt": "x"}, files=files, headers={"X-Backend": "openai"})
    assert answer.status_code == 200, answer.text
    body = studio.servers["openai"].asked(EDITS)[0].body
    assert b'name="image"; filename="cat"\r\nContent-Type: image/png\r\n\r\n' in body


@pytest.mark.proves(EDITS, "image", "mask", "prompt", "strength", "seed", backend="a1111")
def test_edit_by_a1111(studio: Studio) -> None:
    answer = studio.edit("a1111", ("image", PICTURE), ("mask", MASK), strength="0.5", seed="3")
    assert size_of(studio.image(answer.json()["data"][0])) == (64, 64)
    sent = studio.servers["a1111"].asked("/sdapi/v1/img2img")[0].json
    assert base64.b64decode(sent["init_images"][0]) == PICTURE
    assert base64.b64decode(sent["mask"]) == MASK
    assert (sent["inpainting_mask_invert"], sent["denoising_strength"], sent["seed"]) == (1, 0.5, 3)


@pytest.mark.proves(EDITS, "image", "mask", "prompt", "strength", "size", "n", backend="comfyui")
def test_edit_by_comfyui(studio: Studio) -> None:
    answer = studio.edit("comfyui", ("image", PICTURE), ("mask", MASK), strength="0.5", size="128x64", n="2")
    assert len(answer.json()["data"]) == 2, answer.text
    server = studio.servers["comfyui"]
    graph = server.asked("/prompt")[0].json["prompt"]
    assert server.files[graph["source"]["inputs"]["image"]] == PICTURE
    assert server.files[graph["mask"]["inputs"]["image"]] == MASK
    assert graph["sampled"]["inputs"]["denoise"] == 0.5
    assert graph["scaled"]["inputs"]["width"] == 128


@pytest.mark.proves(EDITS, "image", "prompt", "strength", "size", backend="invokeai")
def test_edit_by_invokeai(studio: Studio) -> None:
    answer = studio.edit("invokeai", ("image", PICTURE), strength="0.25", size="128x64")
    assert size_of(studio.image(answer.json()["data"][0])) == (128, 64), answer.text
    server = studio.servers["invokeai"]
    nodes = server.asked("/api/v1/queue/default/enqueue_batch")[0].json["batch"]["graph"]["nodes"]
    assert nodes["denoise"]["denoising_start"] == 0.75
    assert not server.images


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        pytest.param(kind, name, value, marks=pytest.mark.proves(EDITS, name, backend=kind, refused=True))
        for kind in SAMPLED
        for name, value in (
            ("background", "transparent"),
            ("quality", "high"),
            ("input_fidelity", "high"),
            ("stream", "true"),
            ("partial_images", "1"),
        )
    ],
)
def test_field_of_an_edit_without_counterpart_is_refused(studio: Studio, kind: str, name: str, value: str) -> None:
    assert refusal(studio.edit(kind, **{name: value}))["param"] == name
    assert not studio.servers[kind].seen


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind,
            marks=pytest.mark.proves(
                EDITS,
                *("n", "size", "response_format", "seed", "steps", "guidance_scale", "negative_prompt", "scheduler"),
                *("user", "moderation", "model"),
                backend=kind,
            ),
        )
        for kind in SAMPLED
    ],
)
def test_fields_of_an_edit(studio: Studio, kind: str) -> None:
    scheduler = {"a1111": "Karras", "comfyui": "karras", "invokeai": "ddim"}[kind]
    model = {"a1111": "some.ckpt", "comfyui": "second.safetensors", "invokeai": "random-sd1"}[kind]
    fields = {"n": "2", "size": "128x64", "seed": "7", "steps": "3", "guidance_scale": "2.5", "model": model}
    fields |= {"negative_prompt": "dogs", "scheduler": scheduler, "user": "me", "moderation": "low"}
    answer = studio.edit(kind, **fields, response_format="b64_json").json()
    assert len([item["b64_json"] for item in answer["data"]]) == 2
    about = answer["_gateway"]
    assert about["model"] == model
    sent = about["request"]
    wanted = {"negative_prompt": "dogs", "scheduler": scheduler, "steps": 3, "width": 128, "height": 64}
    assert wanted.items() <= sent.items()
    assert sent.get("cfg_scale", sent.get("cfg")) == 2.5
    assert sent.get("seed", about["upstream"].get("seeds", [0])[0]) == 7


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=pytest.mark.proves(EDITS, name, backend=kind))
        for kind in SAMPLED
        for name in NAMES_OF
    ],
)
def test_each_name_of_steps_and_guidance_of_an_edit(studio: Studio, kind: str, name: str) -> None:
    sent = studio.edit(kind, **{name: str(NAMES_OF[name])}).json()["_gateway"]["request"]
    assert (sent["steps"] if "steps" in name else sent.get("cfg_scale", sent.get("cfg"))) == NAMES_OF[name]


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [
        pytest.param("a1111", "Euler a", marks=pytest.mark.proves(EDITS, "sampler", backend="a1111")),
        pytest.param("comfyui", "dpmpp_2m", marks=pytest.mark.proves(EDITS, "sampler", backend="comfyui")),
    ],
)
def test_sampler_of_an_edit(studio: Studio, kind: str, sampler: str) -> None:
    assert studio.edit(kind, sampler=sampler).json()["_gateway"]["request"]["sampler_name"] == sampler


@pytest.mark.proves(EDITS, "sampler", backend="invokeai", refused=True)
def test_invokeai_has_schedulers_alone(studio: Studio) -> None:
    assert refusal(studio.edit("invokeai", sampler="euler"))["param"] == "sampler"


@pytest.mark.parametrize(
    ("kind", "files", "param"),
    [
        pytest.param(
            "nexa", ("image",), "image", marks=pytest.mark.proves(EDITS, "image", backend="nexa", refused=True)
        ),
        pytest.param(
            "invokeai",
            ("image", "mask"),
            "mask",
            marks=pytest.mark.proves(EDITS, "mask", backend="invokeai", refused=True),
        ),
        ("a1111", ("image", "image"), "image"),
        ("comfyui", ("image", "image"), "image"),
        ("invokeai", ("image", "image"), "image"),
        ("openai", ("mask",), "image"),
        ("openai", ("image", "mask", "mask"), "mask"),
        ("openai", ("image", "other"), "other"),
    ],
)
def test_files_that_a_backend_cannot_take(studio: Studio, kind: str, files: tuple[str, ...], param: str) -> None:
    answer = studio.edit(kind, *((name, MASK if name == "mask" else PICTURE) for name in files))
    assert refusal(answer)["param"] == param


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("image", b"words"),
        ("image", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("image", PICTURE[:20]),
        ("image", png(2000, 2000)),
        ("mask", PICTURE),
    ],
    ids=["no image", "an SVG", "cut", "too large", "a mask without alpha"],
)
def test_files_that_are_none(studio: Studio, name: str, data: bytes) -> None:
    files = {"image": PICTURE, name: data}
    assert refusal(studio.edit("openai", *files.items()))["param"] == name


def test_edit_that_is_no_form(studio: Studio) -> None:
    refusal(studio.gateway.client.post(EDITS, json={"prompt": "x"}))
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    refusal(studio.gateway.client.post(EDITS, content=b"--x\r\nnonsense", headers=headers))
    files = {"image": ("a.png", PICTURE, "image/png")}
    assert refusal(studio.gateway.client.post(EDITS, data={"prompt": "x", "n": "many"}, files=files))["param"] == "n"


def test_texts_of_a_form_are_utf_8_whatever_it_says(studio: Studio) -> None:
    """There are character sets in which half a surrogate pair can be written."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n%b\r\n'
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="\\ud800.png"\r\n'
        b"Content-Type: image/png\r\n\r\n%b\r\n--x--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; charset=unicode_escape; boundary=x", "X-Backend": "openai"}
    answer = studio.gateway.client.post(EDITS, content=body % (rb"\ud800", PICTURE), headers=headers)
    assert answer.status_code == 200, answer.text
    sent = form(studio.servers["openai"].asked(EDITS)[0])
    assert (list(sent["image"]), list(sent["prompt"])) == ([PICTURE], [rb"\ud800"])
    assert (
        refusal(studio.gateway.client.post(EDITS, content=body % (b"\xff", PICTURE), headers=headers))["param"]
        == "prompt"
    )
