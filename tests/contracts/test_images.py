"""Images through the gateway, from doubles of each kind of image server on real sockets: fields, faults, leaving."""

from __future__ import annotations

from typing import Any

import pytest
from gateway.backends.protocols.image_formats import kind_of, size_of

from tests.support.faces.images import png
from tests.support.gateways import TOKEN
from tests.support.sockets import send
from tests.support.studio import (
    EDITS,
    GENERATIONS,
    KINDS,
    NAMES_OF,
    SAMPLED,
    Studio,
    refusal,
    usual,
)
from tests.support.waiting import until

# A prompt, or a model, that makes each of them work until it is stopped.
SLOW: dict[str, dict[str, str]] = {
    "openai": {"model": "slow"},
    "nexa": {"model": "slow"},
    "a1111": {"prompt": "slow"},
    "comfyui": {"prompt": "slow"},
    "invokeai": {"prompt": "slow"},
}
PROVES = {
    kind: pytest.param(kind, marks=pytest.mark.proves(GENERATIONS, "prompt", "n", "size", "model", backend=kind))
    for kind in KINDS
}


@pytest.mark.parametrize("kind", PROVES.values())
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
    assert by_url["url"].startswith("/ui/images/")
    assert by_url["url"].endswith(".png")
    if kind != "openai":
        assert studio.image(by_url) == studio.image(inline)


@pytest.mark.parametrize("kind", KINDS)
def test_backend_is_stopped_when_its_client_leaves(studio: Studio, kind: str) -> None:
    server = studio.servers[kind]
    body = {"prompt": "a cat", "size": "64x64", **usual(kind), **SLOW[kind]}
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


WITHOUT_IMAGE = b'{"data": [{"b64_json": "***"}], "images": ["***"], "models": [], "prompt_id": 7}'


@pytest.mark.parametrize("fault", [b"[]", b"{}", WITHOUT_IMAGE])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_without_an_image(studio: Studio, kind: str, fault: bytes) -> None:
    studio.servers[kind].faults["/"] = fault
    model = {"comfyui": "first.safetensors", "invokeai": "random-sd1"}.get(kind)
    answer = studio.generate(kind, **({"model": model} if model else {}))
    # InvokeAI's is a list without the model.
    refusal(answer, 404 if (kind, fault) == ("invokeai", WITHOUT_IMAGE) else 502)
    until(lambda: studio.generate(kind).status_code == 200, "not probed back in")


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


@pytest.mark.proves(
    GENERATIONS,
    *("quality", "style", "seed", "steps", "num_inference_steps", "user", "background", "moderation", "sampler"),
    *("scheduler", "negative_prompt", "output_format", "output_compression"),
    backend="openai",
)
def test_fields_that_an_openai_server_gets(studio: Studio) -> None:
    fields: dict[str, Any] = {"quality": "high", "style": "vivid", "seed": 7, "steps": 4, "num_inference_steps": 4}
    fields |= {"sampler": "a", "scheduler": "b", "negative_prompt": "dogs", "output_format": "png", "user": "me"}
    fields |= {"output_compression": 9, "something": {"new": [1]}}
    assert studio.generate("openai", **fields, background="opaque", moderation="low").status_code == 200
    sent = studio.servers["openai"].asked(GENERATIONS)[0].json
    assert sent == {
        "prompt": "a cat",
        "n": 1,
        "size": "64x64",
        "response_format": "b64_json",
        "background": "opaque",
        "moderation": "low",
        **fields,
    }


def test_numbers_of_any_size_are_forwarded(studio: Studio) -> None:
    assert studio.generate("openai", something=10**30).status_code == 200
    assert studio.servers["openai"].asked(GENERATIONS)[0].json["something"] == 10**30


@pytest.mark.proves(GENERATIONS, "guidance_scale", "guidance", "cfg_scale", backend="openai")
def test_turbo_models_get_no_guidance_unless_asked_for(studio: Studio) -> None:
    about = studio.generate("openai", model="sdxl-turbo").json()["_gateway"]
    assert (about["guidance_scale"], about["guidance_auto"]) == (0, True)
    about = studio.generate("openai", model="sdxl-turbo", guidance=2.5).json()["_gateway"]
    assert (about["guidance_scale"], about["guidance_auto"]) == (2.5, False)
    first, second = studio.servers["openai"].asked(GENERATIONS)
    assert first.json["guidance_scale"] == 0
    assert "guidance_scale" not in second.json
    assert second.json["guidance"] == 2.5


def test_what_an_openai_server_tells_is_passed_on(studio: Studio) -> None:
    answer = studio.generate("openai", model="revised")
    assert answer.json()["usage"] == {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    assert answer.json()["data"][0]["revised_prompt"] == "a better prompt"
    entry = studio.gateway.log_entry(lambda entry: entry["request_id"] == answer.headers["x-request-id"])
    assert (entry["input_tokens"], entry["output_tokens"]) == (3, 4)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("url", "a URL or a path"),
        ("text", "other than a PNG"),
        ("few", "fewer than 1"),
        ("webp", "than 'png'"),
    ],
)
def test_malformed_answers(studio: Studio, model: str, words: str) -> None:
    assert words in refusal(studio.generate("openai", model=model, output_format="png"), 502)["message"]


def test_path_on_the_backends_disk_is_not_read(studio: Studio) -> None:
    assert "a URL or a path" in refusal(studio.generate("nexa", model="old"), 502)["message"]


def test_errors_that_are_strings(studio: Studio) -> None:
    assert "model not found" in refusal(studio.generate("nexa", model="other"), 502)["message"]


REFUSED = [
    ("nexa", ("seed", 1)),
    ("nexa", ("steps", 1)),
    ("nexa", ("negative_prompt", "x")),
    *(("nexa", (name, 1)) for name in ("num_inference_steps", "guidance_scale", "guidance", "cfg_scale")),
    ("nexa", ("sampler", "x")),
    ("nexa", ("scheduler", "x")),
    *((kind, ("quality", "hd")) for kind in ("nexa", "a1111", "comfyui", "invokeai")),
    *((kind, ("style", "vivid")) for kind in ("nexa", "a1111", "comfyui", "invokeai")),
    *((kind, ("background", "transparent")) for kind in ("nexa", "a1111", "comfyui", "invokeai")),
    *((kind, ("output_format", "webp")) for kind in ("nexa", "a1111", "invokeai")),
    *((kind, ("output_compression", 5)) for kind in ("nexa", "a1111", "comfyui", "invokeai")),
    ("invokeai", ("sampler", "euler")),
    *((kind, ("stream", True)) for kind in KINDS),
    *((kind, ("partial_images", 2)) for kind in KINDS),
]


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        pytest.param(
            kind,
            field,
            marks=pytest.mark.proves(GENERATIONS, field[0], backend=kind, refused=True),
            id=f"{kind}-{field[0]}",
        )
        for kind, field in REFUSED
    ],
)
def test_field_without_counterpart_is_refused_by_name(studio: Studio, kind: str, field: tuple[str, Any]) -> None:
    name, value = field
    assert refusal(studio.generate(kind, **{name: value}))["param"] == name
    assert not studio.servers[kind].seen


NATIVE = ("nexa", "a1111", "comfyui", "invokeai")
DONE_ANYWAY = {"quality": "auto", "background": "auto", "moderation": "auto", "output_format": "png", "user": "me"}


@pytest.mark.parametrize("kind", NATIVE)
def test_field_that_nobody_knows_is_refused_by_name(studio: Studio, kind: str) -> None:
    assert refusal(studio.generate(kind, invented=1))["param"] == "invented"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=pytest.mark.proves(GENERATIONS, name, backend=kind))
        for kind in SAMPLED
        for name in NAMES_OF
    ],
)
def test_each_name_of_steps_and_guidance(studio: Studio, kind: str, name: str) -> None:
    answer = studio.generate(kind, **{name: NAMES_OF[name]})
    sent = answer.json()["_gateway"]["request"]
    if "steps" in name:
        assert sent["steps"] == 3
    else:
        assert sent.get("cfg_scale", sent.get("cfg")) == 2.5
        assert answer.json()["_gateway"]["guidance_scale"] == 2.5


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.proves(GENERATIONS, "user", "moderation", backend=kind)) for kind in NATIVE],
)
def test_fields_that_ask_for_what_is_done_anyway(studio: Studio, kind: str) -> None:
    assert studio.generate(kind, **DONE_ANYWAY, stream=False, partial_images=0).status_code == 200


@pytest.mark.proves(
    GENERATIONS, "seed", "steps", "cfg_scale", "negative_prompt", "sampler", "scheduler", "model", backend="a1111"
)
def test_fields_that_a1111_gets(studio: Studio) -> None:
    fields = {"seed": 7, "num_inference_steps": 9, "cfg_scale": 3.5, "negative_prompt": "dogs", "model": "some.ckpt"}
    answer = studio.generate("a1111", **fields, sampler="Euler a", scheduler="Karras", n=2)
    assert answer.json()["_gateway"]["upstream"] == {"seeds": [7, 8]}
    sent = studio.servers["a1111"].asked("/sdapi/v1/txt2img")[0].json
    assert sent.pop("force_task_id").startswith("task(")
    assert sent == {
        "prompt": "a cat",
        "negative_prompt": "dogs",
        "width": 64,
        "height": 64,
        "batch_size": 2,
        "steps": 9,
        "cfg_scale": 3.5,
        "seed": 7,
        "sampler_name": "Euler a",
        "scheduler": "Karras",
        "override_settings": {"sd_model_checkpoint": "some.ckpt"},
        "send_images": True,
        "save_images": False,
    }


def test_steps_of_a1111_are_a_setting(studio: Studio) -> None:
    studio.generate("a1111")
    assert studio.servers["a1111"].asked("/sdapi/v1/txt2img")[0].json["steps"] == 20


@pytest.mark.proves(
    GENERATIONS,
    "seed",
    "steps",
    "guidance_scale",
    "negative_prompt",
    "sampler",
    "scheduler",
    "output_format",
    "output_compression",
    backend="comfyui",
)
def test_fields_that_comfyui_gets(studio: Studio) -> None:
    fields = {"seed": 7, "steps": 9, "guidance_scale": 3.5, "negative_prompt": "dogs", "model": "second.safetensors"}
    formats = {"output_format": "webp", "output_compression": 60}
    answer = studio.generate("comfyui", **fields, **formats, sampler="dpmpp_2m", scheduler="karras")
    server = studio.servers["comfyui"]
    graph = server.asked("/prompt")[0].json["prompt"]
    assert graph["model"]["inputs"]["ckpt_name"] == "second.safetensors"
    assert graph["negative"]["inputs"]["text"] == "dogs"
    sampler = {"seed": 7, "steps": 9, "cfg": 3.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0}
    assert sampler.items() <= graph["sampled"]["inputs"].items()
    assert "preview=webp%3B60" in server.asked("/view")[0].path
    assert kind_of(studio.image(answer.json()["data"][0])) == "webp"


def test_comfyui_that_gives_ids_of_its_own(studio: Studio) -> None:
    server = studio.servers["comfyui"]
    server.gives_ids = True
    try:
        assert studio.generate("comfyui").status_code == 200
    finally:
        server.gives_ids = False


@pytest.mark.parametrize(("field", "value"), [("sampler", "magic"), ("scheduler", "magic"), ("model", "magic")])
def test_comfyui_names_what_it_does_not_know(studio: Studio, field: str, value: str) -> None:
    error = refusal(studio.generate("comfyui", **{field: value}))
    assert error["param"] == field
    assert "not in" in error["message"]


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
    ("fields", "status", "param"),
    [
        ({"scheduler": "magic"}, 400, "scheduler"),
        ({"model": "nothing-like-it"}, 404, "model"),
        ({"model": "a-flux"}, 400, "model"),
        ({"size": "60x64"}, 400, "size"),
    ],
)
def test_invokeai_names_what_it_does_not_know(studio: Studio, fields: dict[str, str], status: int, param: str) -> None:
    assert refusal(studio.generate("invokeai", **fields), status)["param"] == param


def test_a1111_names_a_sampler_that_it_does_not_know(studio: Studio) -> None:
    assert refusal(studio.generate("a1111", sampler="magic"))["param"] == "sampler"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{}", "prompt"),
        (b'{"prompt": ""}', "prompt"),
        (b'{"prompt": 1}', "prompt"),
        (b'{"prompt": "x", "n": 0}', "n"),
        (b'{"prompt": "x", "n": 5}', "n"),
        (b'{"prompt": "x", "n": "1"}', "n"),
        (b'{"prompt": "x", "size": "big"}', "size"),
        (b'{"prompt": "x", "size": "2000x2000"}', "size"),
        (b'{"prompt": "x", "size": "0x64"}', "size"),
        (b'{"prompt": "x", "response_format": "png"}', "response_format"),
        (b'{"prompt": "x", "steps": 0}', "steps"),
        (b'{"prompt": "x", "seed": 4294967296}', "seed"),
        (b'{"prompt": "x", "guidance_scale": "3"}', "guidance_scale"),
        (b'{"prompt": "x", "output_compression": 101}', "output_compression"),
        (b"{", None),
        (b"[]", None),
        (b'{"prompt": "\xff"}', None),
    ],
)
def test_wrong_bodies_are_refused_by_name(studio: Studio, body: bytes, param: str | None) -> None:
    answer = studio.gateway.client.post(GENERATIONS, content=body)
    assert refusal(answer)["param"] == param
    assert not studio.servers["openai"].seen


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


def test_backend_that_makes_no_images_is_refused(studio: Studio) -> None:
    answer = studio.gateway.client.post(GENERATIONS, json={"prompt": "x"}, headers={"X-Backend": "test"})
    assert refusal(answer)["code"] == "capability_not_supported"


def test_each_image_route_wants_a_token(studio: Studio) -> None:
    for path in (GENERATIONS, EDITS):
        assert studio.gateway.client.post(path, headers={"Authorization": ""}).status_code == 401


def test_token_is_never_in_what_backends_get(studio: Studio) -> None:
    for kind in KINDS:
        studio.generate(kind)
    seen = [request for server in studio.servers.values() for request in server.seen]
    assert seen
    assert not any(TOKEN in str(request.headers) for request in seen)
