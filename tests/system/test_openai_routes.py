"""Chat, completions, embeddings, models: through a real gateway process to a real upstream socket."""

import json

import pytest

from tests.support.gateways import Gateway
from tests.support.upstream import ANSWER, DONE, EVENT, MODELS, Upstream

EVENTS = b"".join(EVENT % number for number in range(3))


def test_answer_and_headers(served: Gateway, seen: Upstream) -> None:
    answer = served.chat("fast", seed=7, unknown_field={"kept": [1.0]})
    assert answer.status_code == 200
    assert answer.json() == ANSWER | {"model": "echo"}
    assert answer.headers["x-backend-used"] == "test"
    assert answer.headers["x-model-used"] == "echo"
    assert answer.headers["x-router-reason"] == "alias:model"
    assert answer.headers["x-request-id"].startswith("req-")
    assert len(answer.headers["x-request-id"]) == len("req-") + 24
    (request,) = seen.wait_for(1)
    assert request.path == "/v1/chat/completions"
    assert request.json == {
        "model": "echo",
        "messages": [{"role": "user", "content": "Hi"}],
        "seed": 7,
        "unknown_field": {"kept": [1.0]},
    }
    assert "authorization" not in request.headers


def test_body_goes_up_byte_for_byte_when_the_model_is_the_backends(served: Gateway, seen: Upstream) -> None:
    body = b'{ "messages":[{"role":"user","content":"\xc3\xa9"}] ,"model":"echo", "big": 1180591620717411303424}'
    assert served.client.post("/v1/chat/completions", content=body).status_code == 200
    assert seen.wait_for(1)[0].body == body


def test_stream_is_passed_on_as_it_came(served: Gateway, seen: Upstream) -> None:
    answer = served.chat("echo", stream=True)
    assert answer.content == EVENTS + DONE
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-router-reason"] == "pinned:model"


@pytest.mark.parametrize("model", ["no-done", "no-blank-line"])
def test_terminator_is_added_when_a_complete_stream_lacks_it(served: Gateway, seen: Upstream, model: str) -> None:
    assert served.chat(model, stream=True).content == EVENTS + DONE


@pytest.mark.parametrize("model", ["die-mid", "die-in-event"])
def test_backend_that_dies_in_a_stream_is_an_event_and_no_done(served: Gateway, seen: Upstream, model: str) -> None:
    answer = served.chat(model, stream=True)
    assert answer.status_code == 200
    assert answer.content.startswith(EVENTS)
    rest = answer.content.removeprefix(EVENTS)
    assert rest.startswith(b"data: ")
    error = json.loads(rest.removeprefix(b"data: "))["error"]
    assert (error["type"], error["code"]) == ("upstream_error", "upstream_closed")


def test_completions_and_embeddings(served: Gateway, seen: Upstream) -> None:
    assert served.client.post("/v1/completions", json={"model": "fast", "prompt": "Hi"}).status_code == 200
    vectors = served.client.post("/v1/embeddings", json={"model": "echo", "input": ["Hi"]}).json()
    assert vectors["data"][0]["embedding"] == [0.5, 0.5]
    assert [request.path for request in seen.wait_for(2)] == ["/v1/completions", "/v1/embeddings"]


@pytest.mark.proves("/v1/embeddings", "stream", backend="openai", refused=True)
def test_embeddings_do_not_stream(served: Gateway, seen: Upstream) -> None:
    body = {"model": "echo", "input": "Hi"}
    refused = served.client.post("/v1/embeddings", json=body | {"stream": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stream")
    assert seen.seen == []
    assert served.client.post("/v1/embeddings", json=body | {"stream": False}).json()["object"] == "list"


def test_models(served: Gateway) -> None:
    listed = served.client.get("/v1/models").json()
    ids = [model["id"] for model in listed["data"]]
    assert ids == [f"test:{model}" for model in MODELS] + ["auto", "test", "default", "fast"]
    assert served.client.get("/v1/models/fast").json()["upstream_model"] == "echo"
    assert served.client.get("/v1/models/test:echo").json()["owned_by"] == "local"
    assert served.client.get("/v1/models/echo").json()["id"] == "test:echo"
    missing = served.client.get("/v1/models/fasst")
    assert missing.status_code == 404
    assert "fast" in missing.json()["error"]["message"]


def test_unknown_model_names_the_nearest(served: Gateway) -> None:
    answer = served.chat("defualt")
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "model"
    assert "default" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/chat/completions", "There is no /chat/completions; did you mean /v1/chat/completions?"),
        ("/v1/v1/messages", "There is no /v1/v1/messages; did you mean /v1/messages?"),
        ("/v1/model", "There is no /v1/model; did you mean /v1/models?"),
        ("/zzzzzzzz", "There is no /zzzzzzzz; /docs lists the paths"),
    ],
)
def test_unknown_path_names_the_nearest(served: Gateway, path: str, says: str) -> None:
    answer = served.client.post(path, json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert answer.json()["error"]["message"] == says


def test_model_name_cannot_forge_a_header(served: Gateway, seen: Upstream) -> None:
    answer = served.chat("test:\u00e9\r\nX-Evil: 1")
    assert "x-evil" not in answer.headers
    assert answer.headers["x-model-used"] == "%C3%A9%0D%0AX-Evil: 1"
