"""Which backend of a class gets a request, and what is said when none can."""

import pytest
from gateway.http.errors import ApiError
from gateway.routing.aliases import Alias
from gateway.routing.backends import BackendRecord
from gateway.routing.registry import ROUTES_MAX, Backend, Registry
from gateway.upstream.http1 import Timeouts


def backend(name: str, limit: int | None = None, capabilities: tuple[str, ...] = ("chat",)) -> Backend:
    record = BackendRecord.model_validate(
        {
            "class": "test",
            "base_url": "http://127.0.0.1:1/v1",
            "supported_capabilities": list(capabilities),
            "concurrency_limits": {"chat": limit} if limit else {},
        }
    )
    made = Backend(name, record, Timeouts(), None)
    made.models = ("m",)
    return made


def registry(*backends: Backend) -> Registry:
    return Registry(backends, {"default": Alias("test", "m"), "lost": Alias("nowhere", "m")})


def test_least_loaded_ready_backend_is_taken() -> None:
    first, second = backend("a", 2), backend("b", 2)
    both = registry(first, second)
    route = both.route("m", b"", "chat")
    assert [both.take(route).backend.name for _ in range(4)] == ["a", "b", "a", "b"]
    with pytest.raises(ApiError) as caught:
        both.take(route)
    assert (caught.value.status, caught.value.code) == (429, "backend_overloaded")
    second.slots["chat"].inflight -= 1
    assert both.take(route).backend is second


def test_backend_that_is_down_is_passed_over() -> None:
    first, second = backend("a"), backend("b")
    both = registry(first, second)
    route = both.route("m", b"", "chat")
    first.fail("refused")
    assert [both.take(route).backend.name for _ in range(3)] == ["b", "b", "b"]
    second.fail("refused")
    with pytest.raises(ApiError) as caught:
        both.take(route)
    assert (caught.value.status, caught.value.code) == (503, "backend_not_ready")


def test_failure_wakes_the_prober() -> None:
    woken: list[bool] = []
    one = backend("a")
    one.on_failure = lambda: woken.append(True)
    one.fail("refused")
    assert woken == [True]


@pytest.mark.parametrize(
    ("model", "capability", "status", "code"),
    [("m", "embeddings", 400, "capability_not_supported"), ("lost", "chat", 503, "backend_not_ready")],
)
def test_what_no_backend_can_do(model: str, capability: str, status: int, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        registry(backend("a")).route(model, b"", capability)
    assert (caught.value.status, caught.value.code) == (status, code)


def test_routes_are_decided_anew_when_names_change() -> None:
    one = backend("a")
    alone = registry(one)
    with pytest.raises(ApiError):
        alone.route("new", b"", "chat")
    one.models = ("m", "new")
    alone.refresh_names()
    assert alone.route("new", b"", "chat").decision.reason == "pinned:model"


def test_remembered_routes_are_bounded() -> None:
    alone = registry(backend("a"))
    for number in range(3 * ROUTES_MAX):
        alone.route(f"test:{number}", b"", "chat")
    assert len(alone._routes) <= ROUTES_MAX
