"""Images and edits through the gateway, by a double of each kind of image server: fields, files, faults, leaving."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

import pytest
from gateway.backends.protocols.image_formats import size_of

from tests.support.faces.images import form, png
from tests.support.gateways import TOKEN
from tests.support.sockets import send
from tests.support.studio import (
    EDITS,
    GENERATIONS,
    KINDS,
    MASK,
    NAMES_OF,
    PICTURE,
    SAMPLED,
    Studio,
    refusal,
    usual,
)
from tests.support.waiting import until


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.proves(GENERATIONS, "prompt", "n", "size", "model", backend=kind))
        for kind in KINDS
    ],
)
def test_images_of_the_size_and_number_that_were_asked_for(studio: Studio, kind: str) -> None:
    answer = studio.generate(kind, n=3, size="64x32")
    assert answer.status_code == 200, answer.text
    images = [studio.image(item) for item in answer.json()["data"]]
    assert [size_of(image) for image in images] == [(64, 32)] * 3
    assert answer.headers["x-backend-used"] == kind
    assert answer.headers["x-router-reason"] == "override:x-backend"
    about = answer.json()["_gateway"]
    assert about["mime"] == "image/png"
    assert about["backend_class"] == kind
    assert about["request"]["prompt"] == "a cat"


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.proves(GENERATIONS, "response_format", backend=kind)) for kind in KINDS],
)
def test_url_and_base64_are_the_same_image(studio: Studio, kind: str) -> None:
    fields = {} if kind in ("openai", "nexa") else {"seed": 5}
    by_url = studio.generate(kind, response_format="url", **fields).json()["data"][0]
    inline = studio.generate(kind, response_format="b64_json", **fields).json()["data"][0]
    assert set(inline) - {"revised_prompt"} == {"b64_json"}
    assert by_url["url"].startswith(f"http://127.0.0.1:{studio.gateway.port}/ui/images/")
    assert by_url["url"].endswith(".png")
    if kind != "openai":
        assert studio.image(by_url) == studio.image(inline)


@pytest.mark.parametrize("kind", KINDS)
def test_backend_is_stopped_when_its_client_leaves(studio: Studio, kind: str) -> None:
    server, what = studio.servers[kind], "model" if kind in ("openai", "nexa") else "prompt"
    body = {"prompt": "a cat", "size": "64x64", **usual(kind), what: "slow"}
    work = {"a1111": "/sdapi/v1/txt2img", "comfyui": "/prompt", "invokeai": "/api/v1/queue/default/enqueue_batch"}
    with send(studio.gateway.port, GENERATIONS, body, headers={"X-Backend": kind}):
        asked = until(lambda: server.asked(work.get(kind, GENERATIONS)), "not asked")[0].json
    match kind:
        case "a1111":
            until(lambda: asked["force_task_id"] in server.interrupted, "not interrupted")
        case "comfyui":
            until(lambda: asked["prompt_id"] in server.interrupted, "not interrupted")
        case "invokeai":
            until(lambda: asked["batch"]["batch_id"] in server.cancelled, "not cancelled")
        case _:
            server.wait_for(1, left=True)
    entry = studio.gateway.log_entry(lambda entry: entry.get("backend_class") == kind and entry["status"] == 499)
    assert entry["abort_reason"] == "client_disconnected"
    assert studio.generate(kind).status_code == 200


def test_one_that_waits_is_taken_out_of_the_queue_and_the_other_runs_on(studio: Studio) -> None:
    comfyui = studio.servers["comfyui"]
    comfyui.interrupted.clear()
    comfyui.queue.append(("someone-else", {"positive": {"inputs": {"text": "slow"}}}))
    try:
        body = {"prompt": "a cat", "size": "64x64"}
        with send(studio.gateway.port, GENERATIONS, body, headers={"X-Backend": "comfyui"}):
            prompt_id = until(lambda: comfyui.asked("/prompt"), "not asked")[0].json["prompt_id"]
        until(lambda: prompt_id in comfyui.deleted, "not taken out of the queue")
        assert not comfyui.interrupted
    finally:
        comfyui.queue.clear()


@pytest.mark.parametrize("kind", ["comfyui", "invokeai"])
def test_failure_of_a_job_is_told(studio: Studio, kind: str) -> None:
    error = refusal(studio.generate(kind, prompt="broken"), 502)
    assert "not enough memory" in error["message"]


@pytest.mark.parametrize("late", ["/history", "/view", "/status", "/queue/default/i/", "/full"])
def test_job_is_stopped_when_the_talk_fails(studio: Studio, late: str) -> None:
    kind = "comfyui" if late in ("/history", "/view") else "invokeai"
    server = studio.servers[kind]
    server.faults[late] = b"no image" if late in ("/view", "/full") else b"[]"
    refusal(studio.generate(kind), 502)
    if kind == "invokeai":
        assert server.asked("/api/v1/queue/default/cancel_by_batch_ids")
    else:
        assert server.asked("/queue")


@pytest.mark.parametrize(
    ("kind", "model", "words"),
    [
        ("openai", "url", "a URL or a path"),
        ("openai", "text", "other than a PNG"),
        ("openai", "few", "fewer than 1"),
        ("openai", "webp", "than 'png'"),
        ("nexa", "old", "a URL or a path"),  # of the backend's disk
        ("nexa", "other", "model not found"),
    ],
)
def test_malformed_answers(studio: Studio, kind: str, model: str, words: str) -> None:
    fields = {"output_format": "png"} if kind == "openai" else {}
    assert words in refusal(studio.generate(kind, model=model, **fields), 502)["message"]


NATIVE = ("nexa", "a1111", "comfyui", "invokeai")
REFUSED: dict[str, dict[str, tuple[str, ...]]] = {
    GENERATIONS: {
        **dict.fromkeys(("quality", "style", "background", "output_compression"), NATIVE),
        **dict.fromkeys(("stream", "partial_images"), tuple(KINDS)),
        **dict.fromkeys(("seed", "steps", "negative_prompt", "scheduler", *NAMES_OF), ("nexa",)),
        "output_format": ("nexa", "a1111", "invokeai"),
        "sampler": ("nexa", "invokeai"),
    },
    EDITS: {
        **dict.fromkeys(("background", "quality", "input_fidelity", "stream", "partial_images"), SAMPLED),
        "sampler": ("invokeai",),
    },
}
VALUES: dict[str, Any] = {"background": "transparent", "output_format": "webp", "sampler": "euler", "stream": True}
VALUES |= {"quality": "hd", "style": "vivid", "negative_prompt": "x", "scheduler": "x", "input_fidelity": "high"}


def cases(route: str, kinds: Iterable[str], names: Iterable[str], *, refused: bool = False) -> list[Any]:
    """Each kind with each name, which the test `proves` of the route."""
    return [
        pytest.param(
            route,
            kind,
            name,
            marks=pytest.mark.proves(route, name, backend=kind, refused=refused),
            id=f"{route.rpartition('/')[2]}-{kind}-{name}",
        )
        for kind in kinds
        for name in names
    ]


@pytest.mark.parametrize(
    ("route", "kind", "name"),
    [
        case
        for route, fields in REFUSED.items()
        for name, kinds in fields.items()
        for case in cases(route, kinds, [name], refused=True)
    ],
)
def test_field_without_counterpart_is_refused_by_name(studio: Studio, route: str, kind: str, name: str) -> None:
    assert refusal(studio.ask(route, kind, **{name: VALUES.get(name, 1)}))["param"] == name
    assert not studio.servers[kind].seen


DONE_ANYWAY = {"quality": "auto", "background": "auto", "moderation": "auto", "output_format": "png", "user": "me"}


@pytest.mark.parametrize("kind", NATIVE)
def test_field_that_nobody_knows_is_refused_by_name(studio: Studio, kind: str) -> None:
    assert refusal(studio.generate(kind, invented=1))["param"] == "invented"


@pytest.mark.parametrize(
    ("route", "kind", "name"), [case for route in REFUSED for case in cases(route, SAMPLED, NAMES_OF)]
)
def test_each_name_of_steps_and_guidance(studio: Studio, route: str, kind: str, name: str) -> None:
    about = studio.ask(route, kind, **{name: NAMES_OF[name]}).json()["_gateway"]
    sent = about["request"]
    assert (sent["steps"] if "steps" in name else sent.get("cfg_scale", sent.get("cfg"))) == NAMES_OF[name]
    assert about["guidance_scale"] == NAMES_OF[name] or "steps" in name


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.proves(GENERATIONS, "user", "moderation", backend=kind)) for kind in NATIVE],
)
def test_fields_that_ask_for_what_is_done_anyway(studio: Studio, kind: str) -> None:
    assert studio.generate(kind, **DONE_ANYWAY, stream=False, partial_images=0).status_code == 200


def test_comfyui_that_gives_ids_of_its_own(studio: Studio) -> None:
    server = studio.servers["comfyui"]
    server.gives_ids = True
    try:
        assert studio.generate("comfyui").status_code == 200
    finally:
        server.gives_ids = False


@pytest.mark.proves(
    GENERATIONS, "seed", "steps", "guidance", "negative_prompt", "scheduler", "model", backend="invokeai"
)
@pytest.mark.parametrize("model", ["random-sd1", "key-sdxl"])
def test_fields_that_invokeai_gets(studio: Studio, model: str) -> None:
    fields = {"seed": 2**32 - 1, "steps": 9, "guidance": 3.5, "negative_prompt": "dogs", "scheduler": "ddim"}
    answer = studio.generate("invokeai", model=model, n=2, **fields)
    assert answer.json()["_gateway"]["upstream"]["seeds"] == [2**32 - 1, 0]
    server = studio.servers["invokeai"]
    batch = server.asked("/api/v1/queue/default/enqueue_batch")[0].json["batch"]
    nodes = batch["graph"]["nodes"]
    assert model in (nodes["loader"]["model"]["name"], nodes["loader"]["model"]["key"])
    assert nodes["negative"]["prompt"] == "dogs"
    assert {"steps": 9, "cfg_scale": 3.5, "scheduler": "ddim"}.items() <= nodes["denoise"].items()
    assert batch["data"] == [[{"node_path": "noise", "field_name": "seed", "items": [2**32 - 1, 0]}]]
    # In the order of the seeds, though the ids of the items come the other way round; and nothing is left there.
    assert [studio.image(item) for item in answer.json()["data"]] == [
        png(64, 64, (seed, "a cat")) for seed in (2**32 - 1, 0)
    ]
    assert not server.images


@pytest.mark.parametrize(
    ("kind", "fields", "status", "told"),
    [
        ("a1111", {"sampler": "magic"}, 400, ""),
        *(("comfyui", {name: "magic"}, 400, "not in") for name in ("sampler", "scheduler", "model")),
        ("invokeai", {"scheduler": "magic"}, 400, ""),
        ("invokeai", {"model": "nothing-like-it"}, 404, "it has: a-flux, random-sd1, random-sdxl"),
        ("invokeai", {"model": "a-flux"}, 400, ""),
        ("invokeai", {"size": "60x64"}, 400, ""),
    ],
)
def test_what_a_server_does_not_know_is_named(
    studio: Studio, kind: str, fields: dict[str, str], status: int, told: str
) -> None:
    error = refusal(studio.generate(kind, **fields), status)
    assert error["param"] in fields
    assert told in error["message"]


WRONG: list[tuple[str, Any]] = [
    *(("prompt", value) for value in (None, "", 1)),
    *(("n", value) for value in (0, 5, "1")),
    *(("size", value) for value in ("big", "2000x2000", "0x64")),
    *(("response_format", "png"), ("steps", 0), ("seed", 2**32), ("guidance_scale", "3"), ("output_compression", 101)),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_field_is_refused_by_name(studio: Studio, name: str, value: Any) -> None:
    assert refusal(studio.gateway.client.post(GENERATIONS, json={"prompt": "x", name: value}))["param"] == name
    assert not studio.servers["openai"].seen


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"prompt": "\xff"}', b"{}"])
def test_a_body_that_is_not_an_object_with_a_prompt(studio: Studio, body: bytes) -> None:
    assert refusal(studio.gateway.client.post(GENERATIONS, content=body))["param"] == (
        "prompt" if body == b"{}" else None
    )


def test_names_of_one_thing_may_not_disagree(studio: Studio) -> None:
    assert refusal(studio.generate("comfyui", steps=4, num_inference_steps=5))["param"] == "num_inference_steps"
    assert studio.generate("comfyui", steps=4, num_inference_steps=4).status_code == 200


@pytest.mark.parametrize(
    ("fields", "goes_to", "model", "reason"),
    [
        ({}, "openai", "", "direct:model"),
        ({"model": "auto"}, "openai", "", "direct:model"),
        ({"model": "some-model"}, "openai", "some-model", "direct:model"),
        ({"model": "comfyui"}, "comfyui", "", "pinned:model"),
        ({"model": "comfyui:first.safetensors"}, "comfyui", "first.safetensors", "pinned:model"),
        ({"model": "painter"}, "comfyui", "second.safetensors", "alias:model"),
    ],
)
def test_where_a_request_goes(studio: Studio, fields: dict[str, str], goes_to: str, model: str, reason: str) -> None:
    answer = studio.gateway.client.post(GENERATIONS, json={"prompt": "a cat", "size": "64x64", **fields})
    assert answer.status_code == 200, answer.text
    headers = answer.headers
    assert (headers["x-backend-used"], headers["x-model-used"], headers["x-router-reason"]) == (goes_to, model, reason)


def test_token_is_never_in_what_backends_get(studio: Studio) -> None:
    for kind in KINDS:
        studio.generate(kind)
    seen = [request for server in studio.servers.values() for request in server.seen]
    assert seen
    assert not any(TOKEN in str(request.headers) for request in seen)


# --- edits


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
    ("kind", "sampler"),
    [
        pytest.param("a1111", "Euler a", marks=pytest.mark.proves(EDITS, "sampler", backend="a1111")),
        pytest.param("comfyui", "dpmpp_2m", marks=pytest.mark.proves(EDITS, "sampler", backend="comfyui")),
    ],
)
def test_sampler_of_an_edit(studio: Studio, kind: str, sampler: str) -> None:
    assert studio.edit(kind, sampler=sampler).json()["_gateway"]["request"]["sampler_name"] == sampler


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
