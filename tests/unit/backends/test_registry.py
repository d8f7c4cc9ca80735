"""Which backend of a class gets a request, and what is said when none can."""

from typing import Any

import pytest
from gateway.backends import slots as module
from gateway.backends.records import BackendRecord, BackendsFile
from gateway.backends.registry import ROUTES_MAX, Registry, Route
from gateway.backends.slots import CIRCUIT_OPENS_AFTER, Backend, backend_maker
from gateway.errors import ApiError
from gateway.routing.aliases import Alias
from gateway.wire.http1 import Pool, Timeouts

from tests.support.registries import ALIASES, ROUTING, record, registry
from tests.support.waiting import until_async


def taken(registry: Registry, route: Route) -> str:
    slots = registry.take(route)
    return slots.backend.name if slots else ""


def test_least_loaded_ready_backend_is_taken() -> None:
    both = registry(a=record(2), b=record(2))
    route = both.route("m", b"", "chat")
    assert [taken(both, route) for _ in range(5)] == ["a", "b", "a", "b", ""]
    both.backends[1].slots["chat"].release()
    assert taken(both, route) == "b"


def test_backend_that_is_down_is_passed_over() -> None:
    both = registry(a=record(), b=record())
    first, second = both.backends
    route = both.route("m", b"", "chat")
    first.fail("refused")
    assert [taken(both, route) for _ in range(3)] == ["b", "b", "b"]
    second.fail("refused")
    with pytest.raises(ApiError) as caught:
        both.take(route)
    assert (caught.value.status, caught.value.code) == (503, "backend_not_ready")
    assert dict(caught.value.headers)[b"retry-after"] == b"30"


def test_the_host_that_failed_is_not_tried_again() -> None:
    both = registry(a=record(), b=record())
    slots = both.take(both.route("m", b"", "chat"), both.backends[0])
    assert slots is not None
    assert slots.backend.name == "b"
    alone = registry(a=record())
    with pytest.raises(ApiError):
        alone.take(alone.route("m", b"", "chat"), alone.backends[0])


def test_circuit_of_a_host_that_keeps_failing_opens_and_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    both = registry(a=record(), b=record())
    route = both.route("m", b"", "chat")
    for _ in range(CIRCUIT_OPENS_AFTER - 1):
        both.backends[0].strain_circuit()
    assert taken(both, route) == "a"
    both.backends[0].strain_circuit()
    assert [taken(both, route) for _ in range(3)] == ["b", "b", "b"]
    now += 1
    assert taken(both, route) == "a"
    both.backends[0].strain_circuit()  # twice as long
    now += 1
    assert taken(both, route) == "b"
    now += 1
    both.backends[0].close_circuit()
    assert both.backends[0].is_usable


def test_a_host_whose_circuit_is_open_is_better_than_none() -> None:
    alone = registry(a=record())
    for _ in range(CIRCUIT_OPENS_AFTER):
        alone.backends[0].strain_circuit()
    assert taken(alone, alone.route("m", b"", "chat")) == "a"


def test_failure_wakes_the_prober() -> None:
    woken: list[bool] = []
    (one,) = registry(a=record()).backends
    one.on_failure = lambda: woken.append(True)
    one.fail("refused")
    assert woken == [True]


@pytest.mark.parametrize(
    ("model", "capability", "status", "code"),
    [("m", "embeddings", 400, "capability_not_supported"), ("lost", "chat", 503, "backend_not_ready")],
)
def test_requests_that_no_backend_can_serve_are_refused(model: str, capability: str, status: int, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        registry(a=record()).route(model, b"", capability)
    assert (caught.value.status, caught.value.code) == (status, code)


def test_routes_are_decided_anew_when_names_change() -> None:
    alone = registry(a=record())
    with pytest.raises(ApiError):
        alone.route("new", b"", "chat")
    alone.backends[0].models = ("m", "new")
    alone.refresh_names()
    assert alone.route("new", b"", "chat").decision.reason == "pinned:model"


def test_names_of_models_are_bounded() -> None:
    alone = registry(a=record())
    alone.route_in_class("x" * 500, b"", "chat", "test", "/v1/x")
    with pytest.raises(ApiError, match="at most 500 characters") as caught:
        alone.route_in_class("x" * 501, b"", "chat", "test", "/v1/x")
    assert (caught.value.status, caught.value.param) == (400, "model")


def test_remembered_routes_are_bounded() -> None:
    alone = registry(a=record())
    for number in range(3 * ROUTES_MAX):
        alone.route(f"test:{number}", b"", "chat")
        alone.route_in_class(f"test:{number}", b"", "chat", "test", "/v1/x")
    assert len(alone._routes) <= ROUTES_MAX
    assert len(alone._decided) <= ROUTES_MAX


@pytest.mark.parametrize("model", ["", "auto", "Auto"])
def test_the_policy_decides_only_where_nothing_is_named(model: str) -> None:
    alone = registry(a=record())
    assert alone.named_route("m", b"", "chat") is not None
    assert alone.named_route(model, b"test", "chat") is not None
    assert alone.named_route(model, b"", "chat") is None
    assert alone.route(model, b"", "chat").decision.reason == "direct:model"


def test_tokens_are_counted_by_a_ready_host_that_has_a_tokenizer() -> None:
    plain = record()
    counting = record(protocol="llamacpp")
    some = registry(a=plain, b=counting, c=counting)
    (_, first, second) = some.backends
    assert some.tokenizer_of(ALIASES["default"]) is first
    first.fail("refused")
    assert some.tokenizer_of(ALIASES["default"]) is second
    second.fail("refused")
    assert some.tokenizer_of(ALIASES["default"]) is None
    assert some.tokenizer_of(ALIASES["lost"]) is None
    assert registry(a=plain).tokenizer_of(ALIASES["default"]) is None


def replaced(before: dict[str, BackendRecord], after: dict[str, BackendRecord]) -> tuple[list[Backend], list[Backend]]:
    one = registry(**before)
    old = list(one.backends)
    one.replace(BackendsFile(after, {}), ALIASES)
    return old, list(one.backends)


def test_unchanged_backends_stay_what_they_are() -> None:
    old, new = replaced({"a": record(2), "b": record(2)}, {"b": record(2), "a": record(3)})
    assert new == old[::-1]
    assert new[1].slots["chat"].limit == 3


def test_alias_may_name_a_class_as_it_was_called_before() -> None:
    named: Any = {"class": "local_mlx"}
    file = BackendsFile({"a": record(**named)}, {"mlx": "local_mlx"})
    make = backend_maker(Timeouts(), None)  # type: ignore[arg-type]  # no https here
    made = Registry(file, {"old": Alias("mlx", "m")}, *ROUTING, make)
    decision = made.route("old", b"", "chat").decision
    assert (decision.backend_class, decision.model) == ("local_mlx", "m")


def test_backends_that_are_gone_keep_no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    retired: list[Pool] = []
    monkeypatch.setattr(Pool, "retire", lambda self: retired.append(self))
    moved: Any = {"base_url": "http://127.0.0.1:2/v1"}
    old, new = replaced({"a": record(2), "b": record(2), "c": record(2)}, {"b": record(3), "a": record(2, **moved)})
    assert retired == [old[0].pool, old[2].pool]
    assert new[0].pool is old[1].pool


def test_a_change_of_the_backends_calls_on_change(monkeypatch: pytest.MonkeyPatch) -> None:
    one = registry(a=record())
    told: list[int] = []
    one.on_change = lambda: told.append(len(one.backends))
    one.replace(BackendsFile({"a": record(), "b": record()}, {}), {})
    assert told == [2]
    assert "default" not in one.names.aliases


HERE: dict[str, Any] = {"class": "test"}
THERE = HERE | {"base_url": "http://127.0.0.1:2/v1"}
# What a reload may say of a host in between, and what says the same of it again in the end.
EDITS: dict[str, dict[str, BackendRecord]] = {
    "edited": {"a": record(2, description="edited")},
    "another protocol": {"a": record(2, protocol="ollama")},
    "no such capability": {"a": record(supported_capabilities=["embeddings"])},
    "moved": {"a": record(2, **THERE)},
    "gone": {"b": record(2)},
}


@pytest.mark.parametrize("edit", EDITS)
def test_requests_under_way_are_counted_over_reloads(edit: str) -> None:
    one = registry(a=record(2))
    route = one.route("m", b"", "chat")
    held = [one.take(route), one.take(route)]
    one.backends[0].strain_circuit()
    for records in [EDITS[edit], {"a": record(2)}] * 4:
        one.replace(BackendsFile(records, {}), ALIASES)
    host, slots = one.backends[0], one.backends[0].slots["chat"]
    assert (slots.inflight, host.circuit_failures, host.models) == (2, 1, ("m",))
    assert one.take(one.route("m", b"", "chat")) is None
    for old in held:
        assert old is not None
        old.release()
    assert slots.inflight == 0
    one.replace(BackendsFile(EDITS[edit], {}), ALIASES)
    assert one.all_backends == one.backends  # what nothing is under way on is forgotten


def test_lower_limit_admits_nobody_until_as_many_have_ended() -> None:
    one = registry(a=record(3))
    held = [one.take(one.route("m", b"", "chat")) for _ in range(3)]
    one.replace(BackendsFile({"a": record(2)}, {}), ALIASES)
    admitted = []
    for slots in held:
        admitted.append(one.take(one.route("m", b"", "chat")))
        assert slots is not None
        slots.release()
    assert admitted == [None, None, one.backends[0].slots["chat"]]


async def test_a_slot_cools_down_after_an_abort_also_when_a_reload_replaced_it() -> None:
    one = registry(a=record(2, cooldown_ms=1))
    old = one.take(one.route("m", b"", "chat"))
    assert old is not None
    one.replace(BackendsFile({"a": record(2, cooldown_ms=1, protocol="ollama")}, {}), ALIASES)
    new = one.backends[0].slots["chat"]
    assert old.on_abort is not None
    old.on_abort()
    old.release()
    assert (new is old, new.inflight) == (False, 1)
    await until_async(lambda: new.inflight == 0)
    assert registry(a=record(2)).backends[0].slots["chat"].on_abort is None


def test_edited_host_is_probed_anew_and_keeps_its_state() -> None:
    one = registry(a=record(2))
    (host,), woken = one.backends, []
    host.on_failure = lambda: woken.append(True)
    host.ready = False
    for _ in range(2):
        one.replace(BackendsFile({"a": record(2, api_key="sk")}, {}), ALIASES)
    assert (host.ready, woken) == (False, [True])
    assert host.request_headers.startswith(b"Authorization: Bearer sk")


@pytest.mark.parametrize("queue", [None, {"max": 2, "timeout_sec": 1}])
def test_hosts_of_a_class_wait_in_one_queue(queue: Any) -> None:
    both = registry(a=record(1, queue=queue), b=record(1, queue=queue))
    first, second = (backend.slots["chat"].queue for backend in both.backends)
    assert first is second
    assert (first is not None) == (queue is not None)


def test_aliases_of_a_missing_class_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    registry(a=record())
    assert [entry.getMessage() for entry in caplog.records] == [
        "alias 'lost' has no backend: configure one of class 'nowhere'"
    ]
