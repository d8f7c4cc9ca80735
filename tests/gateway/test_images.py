"""Images through the gateway, from doubles of each kind of image server on real sockets."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from gateway.images.formats import kind_of, size_of
from gateway.routing.backends import load_backends
from gateway.settings import load_settings

from tests.doubles.a1111 import A1111
from tests.doubles.comfyui import ComfyUI
from tests.doubles.images import ImageServer, OpenAIImages, form, png
from tests.doubles.invokeai import InvokeAI
from tests.doubles.nexa import MODEL as NEXA_MODEL
from tests.doubles.nexa import Nexa
from tests.gateway.conftest import TOKEN, Gateway, gateway
from tests.gateway.upstream import Upstream, running, upstream

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
KINDS: dict[str, Callable[[], ImageServer]] = {
    "openai": OpenAIImages,
    "nexa": Nexa,
    "a1111": A1111,
    "comfyui": ComfyUI,
    "invokeai": InvokeAI,
}
# A prompt, or a model, that makes each of them work until it is stopped.
SLOW: dict[str, dict[str, str]] = {
    "openai": {"model": "slow"},
    "nexa": {"model": "slow"},
    "a1111": {"prompt": "slow"},
    "comfyui": {"prompt": "slow"},
    "invokeai": {"prompt": "slow"},
}
PICTURE = png(64, 64, "source")
MASK = png(64, 64, "mask", alpha=True)


@dataclass
class Studio:
    """A gateway in front of one image server of each kind; a class is called as its protocol."""

    gateway: Gateway
    servers: dict[str, Any]

    def generate(self, kind: str, **fields: Any) -> httpx.Response:
        body = {"prompt": "a cat", "size": "64x64", **_usual(kind), **fields}
        return self.gateway.client.post(GENERATIONS, json=body, headers={"X-Backend": kind})

    def edit(self, kind: str, *files: tuple[str, bytes], **fields: Any) -> httpx.Response:
        parts = [(name, (f"{name}.png", data, "image/png")) for name, data in files or (("image", PICTURE),)]
        data = {"prompt": "a dog", **_usual(kind), **fields}
        return self.gateway.client.post(EDITS, data=data, files=parts, headers={"X-Backend": kind})

    def image(self, item: dict[str, str]) -> bytes:
        """The bytes of one item of an answer."""
        if "b64_json" in item:
            return base64.b64decode(item["b64_json"])
        return self.gateway.client.get(item["url"], headers={"Authorization": ""}).raise_for_status().content


def _usual(kind: str) -> dict[str, str]:
    return {"model": NEXA_MODEL} if kind == "nexa" else {}


@pytest.fixture(scope="module")
def backend() -> Iterator[Upstream]:
    with upstream() as double:
        yield double


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, backend: Upstream) -> Iterator[Studio]:
    home = tmp_path_factory.mktemp("images")
    with ExitStack() as stack:
        servers = {kind: stack.enter_context(running(make())) for kind, make in KINDS.items()}
        write_backends(home, backend, servers)
        yield Studio(stack.enter_context(gateway(home, IMAGES_BACKEND_CLASS="openai")), servers)


@pytest.fixture
def studio(whole: Studio) -> Studio:
    """The shared one, with nothing seen yet."""
    for server in whole.servers.values():
        server.seen.clear()
        server.faults.clear()
    whole.servers["invokeai"].images.clear()
    return whole


def write_backends(home: Path, chat: Upstream, servers: dict[str, ImageServer], **record: Any) -> None:
    records: dict[str, dict[str, Any]] = {
        kind: {
            "class": kind,
            "base_url": f"http://127.0.0.1:{server.port}",
            "protocol": kind,
            "supported_capabilities": ["images"],
            "concurrency_limits": {"images": 4},
            **record,
        }
        for kind, server in servers.items()
    }
    records["chat"] = {"class": "test", "base_url": chat.url, "supported_capabilities": ["chat"]}
    (home / "data").mkdir(exist_ok=True)
    (home / "backends.yaml").write_text(yaml.safe_dump({"backends": records}))
    (home / "model_aliases.json").write_text('{"aliases": {"painter": "comfyui:second.safetensors"}}')


def refusal(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


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
    with pytest.raises(httpx.ReadTimeout):
        body = {"prompt": "a cat", "size": "64x64", **_usual(kind), **SLOW[kind]}
        studio.gateway.client.post(GENERATIONS, json=body, headers={"X-Backend": kind}, timeout=1)
    match kind:
        case "a1111":
            task = server.asked("/sdapi/v1/txt2img")[0].json["force_task_id"]
            _until(lambda: task in server.interrupted)
        case "comfyui":
            prompt_id = server.asked("/prompt")[0].json["prompt_id"]
            _until(lambda: prompt_id in server.interrupted)
        case "invokeai":
            batch_id = server.asked("/api/v1/queue/default/enqueue_batch")[0].json["batch"]["batch_id"]
            _until(lambda: batch_id in server.cancelled)
        case _:
            server.wait_for(1, left=True)
    entry = studio.gateway.log_entry(lambda entry: entry.get("backend_class") == kind and entry["status"] == 499)
    assert entry["abort_reason"] == "client_disconnected"
    assert studio.generate(kind).status_code == 200


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "the backend was not told"
        time.sleep(0.01)


def test_one_that_waits_is_taken_out_of_the_queue_and_the_other_runs_on(studio: Studio) -> None:
    comfyui = studio.servers["comfyui"]
    comfyui.interrupted.clear()
    comfyui.queue.append(("someone-else", {"positive": {"inputs": {"text": "slow"}}}))
    try:
        with pytest.raises(httpx.ReadTimeout):
            studio.gateway.client.post(
                GENERATIONS,
                json={"prompt": "a cat", "size": "64x64"},
                headers={"X-Backend": "comfyui"},
                timeout=1,
            )
        prompt_id = comfyui.asked("/prompt")[0].json["prompt_id"]
        _until(lambda: prompt_id in comfyui.deleted)
        assert not comfyui.interrupted
    finally:
        comfyui.queue.clear()


@pytest.mark.parametrize(
    ("path", "fault", "status"),
    [
        ("", "html", 502),
        ("", "cut", 502),
        ("", "garbage", 502),
        ("", "die", 503),
        ("", 500, 502),
        ("", 503, 503),
        ("", 429, 429),
        ("", b"[]", 502),
        ("", b"{}", 502),
        ("", b'{"data": [{"b64_json": "***"}], "images": ["***"], "models": [], "prompt_id": 7}', 502),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_faults_of_a_backend(studio: Studio, kind: str, path: str, fault: str | int | bytes, status: int) -> None:
    server = studio.servers[kind]
    server.faults[path or "/"] = fault
    model = {"comfyui": "first.safetensors", "invokeai": "random-sd1"}.get(kind)
    answer = studio.generate(kind, **({"model": model} if model else {}))
    if kind == "invokeai" and isinstance(fault, bytes) and b"models" in fault:
        status = 404  # a list without the model
    refusal(answer, status)
    deadline = time.monotonic() + 10
    while studio.generate(kind).status_code != 200:
        assert time.monotonic() < deadline, "not probed back in"
        time.sleep(0.05)


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
    [("url", "a URL or a path"), ("text", "no PNG"), ("few", "fewer than 1"), ("webp", "output_format 'png'")],
)
def test_answers_that_are_none(studio: Studio, model: str, words: str) -> None:
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
SAMPLED = ("a1111", "comfyui", "invokeai")
DONE_ANYWAY = {"quality": "auto", "background": "auto", "moderation": "auto", "output_format": "png", "user": "me"}
NAMES_OF = {"steps": 3, "num_inference_steps": 3, "guidance_scale": 2.5, "guidance": 2.5, "cfg_scale": 2.5}


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


@pytest.mark.parametrize("name", ["prompt", "image", "other"])
def test_form_whose_texts_are_none(studio: Studio, name: str) -> None:
    """There are character sets in which half a surrogate pair can be written."""
    texts = {"prompt": b"a dog", "image": b"cat", "other": b"x"} | {name: rb"\ud800"}
    body = (
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n%(prompt)b\r\n'
        b'--x\r\nContent-Disposition: form-data; name="%(other)b"\r\n\r\n1\r\n'
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="%(image)b.png"\r\n'
        b"Content-Type: image/png\r\n\r\n%(picture)b\r\n--x--\r\n"
    )
    content = body % {name.encode(): data for name, data in {**texts, "picture": PICTURE}.items()}
    headers = {"Content-Type": "multipart/form-data; charset=unicode_escape; boundary=x", "X-Backend": "openai"}
    answer = studio.gateway.client.post(EDITS, content=content, headers=headers)
    if name == "image":  # a name says nothing of its file
        assert list(form(studio.servers["openai"].asked(EDITS)[0])["image"]) == [PICTURE], answer.text
    else:
        assert refusal(answer)["code"] == "invalid_form"


def test_each_image_route_wants_a_token(studio: Studio) -> None:
    for path in (GENERATIONS, EDITS):
        assert studio.gateway.client.post(path, headers={"Authorization": ""}).status_code == 401


def test_limits_of_a_backend_hold_for_images(tmp_path: Path, backend: Upstream) -> None:
    with running(OpenAIImages()) as server:
        write_backends(tmp_path, backend, {"openai": server}, concurrency_limits={"images": 1})
        with gateway(tmp_path, IMAGES_BACKEND_CLASS="openai", IMAGES_HTTP_TIMEOUT_SEC="1") as running_gateway:
            studio = Studio(running_gateway, {"openai": server})
            with pytest.raises(httpx.ReadTimeout):
                running_gateway.client.post(GENERATIONS, json={"prompt": "x", "model": "slow"}, timeout=0.5)
            server.wait_for(1, left=True)
            error = refusal(studio.generate("openai", model="slow"), 504)
            assert "IMAGES_HTTP_TIMEOUT_SEC" in error["message"]
            assert studio.generate("openai").status_code == 200
            assert refusal(studio.generate("openai", model="busy"), 429)["code"] == "busy"


POLICIES: list[tuple[dict[str, Any], str | None, str]] = [
    ({}, None, "url"),
    ({"images_format": "b64_json"}, None, "b64_json"),
    ({"images_format": "b64_json"}, "url", "images_format"),
    ({"images_format": "url"}, "b64_json", "images_format"),
    ({"images_allow_base64": False}, "b64_json", "images_allow_base64"),
    ({"images_allow_base64": False}, None, "url"),
    ({"images_max_bytes": 50}, None, "images_max_bytes"),
]


def test_payload_policy(tmp_path: Path, backend: Upstream) -> None:
    with running(OpenAIImages()) as server:
        classes: dict[str, ImageServer] = {f"class-{number}": server for number in range(len(POLICIES))}
        write_backends(tmp_path, backend, classes, protocol="openai")
        content = yaml.safe_load((tmp_path / "backends.yaml").read_text())
        for number, (policy, _, _) in enumerate(POLICIES):
            content["backends"][f"class-{number}"]["payload_policy"] = policy
        (tmp_path / "backends.yaml").write_text(yaml.safe_dump(content))
        with gateway(tmp_path) as running_gateway:
            studio = Studio(running_gateway, {})
            answers = [
                studio.generate(f"class-{number}", response_format=wanted)
                for number, (_, wanted, _) in enumerate(POLICIES)
            ]
    for (_, _, outcome), answer in zip(POLICIES, answers, strict=True):
        if outcome in ("url", "b64_json"):
            assert set(answer.json()["data"][0]) == {outcome}
        else:
            assert outcome in answer.json()["error"]["message"]
            assert answer.status_code == (502 if outcome == "images_max_bytes" else 400)


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        ("http_a1111", "a1111"),
        ("http_openai_images", "openai"),
        ("http_openai_images", "nexa"),
        ("http_invokeai", "invokeai"),
        ("http_comfyui", "comfyui"),
    ],
)
def test_setting_says_what_the_class_speaks(tmp_path: Path, backend: Upstream, setting: str, kind: str) -> None:
    with running(KINDS[kind]()) as server:
        path = server.probes[0].removeprefix("GET ")
        record = {"protocol": "nexa" if kind == "nexa" else "openai", "health": {"liveness": path, "readiness": path}}
        write_backends(tmp_path, backend, {"gpu_heavy": server}, **record)
        with gateway(tmp_path, IMAGES_BACKEND=setting) as running_gateway:
            body = {"prompt": "a cat", "size": "64x64", **_usual(kind)}
            answer = running_gateway.client.post(GENERATIONS, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["_gateway"]["backend"] == setting
    assert answer.headers["x-backend-used"] == "gpu_heavy"


def test_url_of_an_image_server_is_enough(tmp_path: Path, backend: Upstream) -> None:
    with running(A1111()) as server:
        write_backends(tmp_path, backend, {})
        url = f"http://127.0.0.1:{server.port}"
        with gateway(tmp_path, IMAGES_BACKEND="http_a1111", IMAGES_HTTP_BASE_URL=url) as running_gateway:
            answer = running_gateway.client.post(GENERATIONS, json={"prompt": "a cat", "size": "64x64"})
    assert answer.json()["_gateway"]["backend"] == "http_a1111", answer.text


@pytest.mark.parametrize(("host", "is_used"), [("127.0.0.1", False), ("localhost", False), ("elsewhere.test", True)])
def test_url_of_an_image_server_beside_a_record(
    tmp_path: Path, backend: Upstream, monkeypatch: pytest.MonkeyPatch, host: str, is_used: bool
) -> None:
    monkeypatch.setenv("GATEWAY_BEARER_TOKEN", TOKEN)
    with running(OpenAIImages()) as server:
        write_backends(tmp_path, backend, {"gpu_heavy": server}, protocol="openai")
    url = f"http://{host}:7860"
    settings = load_settings(None, gateway_backends_path=tmp_path / "backends.yaml", images_http_base_url=url)
    records = load_backends(settings).records
    assert (records["gpu_heavy"].base_url == url) is is_used
    assert records["chat"].base_url == backend.url


def test_public_base_url_begins_the_url(tmp_path: Path, backend: Upstream) -> None:
    write_backends(tmp_path, backend, {})
    with gateway(tmp_path, PUBLIC_BASE_URL="https://gateway.test/") as running_gateway:
        url = running_gateway.client.post(GENERATIONS, json={"prompt": "x"}).json()["data"][0]["url"]
        assert url.startswith("https://gateway.test/ui/images/")


@pytest.mark.proves(GENERATIONS, "prompt", "n", "size", "seed", "steps", "response_format", backend="mock")
def test_mock_needs_no_backend_and_always_draws_the_same(tmp_path: Path, backend: Upstream) -> None:
    write_backends(tmp_path, backend, {})
    with gateway(tmp_path) as running_gateway:
        client = running_gateway.client
        body = {"prompt": "<script>alert(1)</script>", "n": 2, "size": "200x100", "steps": 3, "seed": 9}
        body["response_format"] = "b64_json"
        first, second = (client.post(GENERATIONS, json=body) for _ in range(2))
        assert first.json()["data"] == second.json()["data"]
        images = [base64.b64decode(item["b64_json"]) for item in first.json()["data"]]
        assert images[0] != images[1]
        assert b"<script" not in images[0]
        assert b'width="200" height="100"' in images[0]
        assert b"steps: 3" in images[0]
        assert b"seed: 9" in images[0]
        assert first.json()["_gateway"]["mime"] == "image/svg+xml"
        assert first.headers["x-backend-used"] == "mock"
        assert refusal(client.post(GENERATIONS, json={**body, "output_format": "png"}))["param"] == "output_format"
        files = {"image": ("a.png", PICTURE, "image/png")}
        edited = client.post(EDITS, data={"prompt": "x"}, files=files)
        assert edited.status_code == 200, edited.text
        assert client.post(GENERATIONS, json={**body, "something": 10**30}).status_code == 200
        # No backend at all is no obstacle to being ready: nothing that the mock needs is missing.
        assert client.get("/readyz").status_code == 200


def test_mock_beside_image_servers(tmp_path: Path, backend: Upstream) -> None:
    with running(OpenAIImages()) as server:
        write_backends(tmp_path, backend, {"gpu_heavy": server}, protocol="openai")
        with gateway(tmp_path, IMAGES_BACKEND="mock") as running_gateway:
            client = running_gateway.client
            body = {"prompt": "x", "size": "64x64"}
            assert client.post(GENERATIONS, json=body).headers["x-backend-used"] == "mock"
            pinned = client.post(GENERATIONS, json=body, headers={"X-Backend": "gpu_heavy"})
            assert pinned.headers["x-backend-used"] == "gpu_heavy"


def test_image_is_a_data_url_when_it_cannot_be_stored(tmp_path: Path, backend: Upstream) -> None:
    write_backends(tmp_path, backend, {})
    blocked = tmp_path / "a file"
    blocked.write_text("")
    with gateway(tmp_path, UI_IMAGE_DIR=str(blocked / "images")) as running_gateway:
        url = running_gateway.client.post(GENERATIONS, json={"prompt": "x"}).json()["data"][0]["url"]
    assert url.startswith("data:image/svg+xml;base64,")


def test_no_data_url_where_base64_is_not_allowed(tmp_path: Path, backend: Upstream) -> None:
    with running(OpenAIImages()) as server:
        write_backends(tmp_path, backend, {"openai": server}, payload_policy={"images_allow_base64": False})
        with gateway(tmp_path, UI_IMAGE_MAX_BYTES="10") as running_gateway:
            answer = Studio(running_gateway, {}).generate("openai")
    assert refusal(answer, 503)["code"] == "storage_unavailable"


@pytest.mark.parametrize(
    ("settings", "prompt", "model", "reason"),
    [
        ({"IMAGES_OPENAI_MODEL": "usual"}, "a cat", "usual", "config:model"),
        ({"IMAGES_ENABLE_REQUEST_TYPE": "true"}, "a cat", "gpu_fast", "policy:images->fast"),
        ({"IMAGES_ENABLE_REQUEST_TYPE": "true"}, "a photorealistic cat", "gpu_slow", "policy:images->slow"),
    ],
)
def test_model_is_chosen(
    tmp_path: Path, backend: Upstream, settings: dict[str, Any], prompt: str, model: str, reason: str
) -> None:
    with running(OpenAIImages()) as server:
        write_backends(tmp_path, backend, {"openai": server})
        with gateway(tmp_path, IMAGES_BACKEND_CLASS="openai", **settings) as running_gateway:
            answer = running_gateway.client.post(GENERATIONS, json={"prompt": prompt, "size": "64x64"})
    about = answer.json()["_gateway"]
    assert (about["model"], about["model_reason"]) == (model, reason)
    assert server.asked(GENERATIONS)[0].json["model"] == model


def test_token_is_never_in_what_backends_get(studio: Studio) -> None:
    for kind in KINDS:
        studio.generate(kind)
    seen = [request for server in studio.servers.values() for request in server.seen]
    assert seen
    assert not any(TOKEN in str(request.headers) for request in seen)
