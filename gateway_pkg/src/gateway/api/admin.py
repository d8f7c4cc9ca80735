"""`/v1/gateway/…`: load and health of the backends, usage of tokens, and the reload of files."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from time import perf_counter

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from gateway.access.tokens import Authenticator, Caller
from gateway.backends.registry import Registry
from gateway.backends.slots import Backend, Slots
from gateway.config.reload import Reloader, ReloadReport
from gateway.observe.health import Problems
from gateway.web.exchange import caller_of


class Admission(BaseModel):
    """One capability of one class, over all its hosts; `limit` and `available` are null where there is no limit."""

    limit: int | None
    available: int | None
    inflight: int
    queued: int


class Health(BaseModel):
    """As last probed; `last_check` in Unix seconds, null before the first."""

    healthy: bool
    ready: bool
    last_check: float | None
    error: str | None


class ClassHealth(Health):
    """A class is as well as the best of its hosts, which are listed by the backend's name."""

    hosts: dict[str, Health]


class TokenUse(BaseModel):
    """A token's limits and what it has used; what is null is not limited."""

    name: str
    admin: bool
    models_allowlist: list[str] | None
    requests_per_minute: int | None
    requests_last_minute: int | None = Field(description="null without a limit of requests")
    tokens_per_day: int | None
    tokens_today: int
    priority: int
    unenforced_policy_keys: list[str] = Field(description="keys of its policy that nothing enforces in this release")


class GatewayStatus(BaseModel):
    """`admission_control` by `<class>.<capability>`, `backend_health` by class, `token` for who asks."""

    admission_control: dict[str, Admission]
    backend_health: dict[str, ClassHealth]
    problems: dict[str, str] = Field(description="why features cannot do all of their work, by their name")
    token: TokenUse
    tokens: list[TokenUse] = Field(description="all tokens for an admin token, else only the own token")


def make_router(
    registry: Registry, authenticator: Authenticator, reloader: Reloader, problems: Problems, unenforced: frozenset[str]
) -> APIRouter:
    """The routes, bound to the gateway's state; no feature enforces the policy keys `unenforced`."""
    router = APIRouter(prefix="/v1/gateway", tags=["gateway"])

    @router.get("/status", summary="Show load and health of the backends, and usage of the token's limits")
    async def get_status(request: Request) -> GatewayStatus:
        caller = caller_of(request)
        return GatewayStatus(
            admission_control=_admission(registry.backends),
            backend_health=_health(registry.backends),
            problems=dict(problems()),
            token=_use(caller, unenforced),
            tokens=[_use(one, unenforced) for one in (authenticator.callers() if caller.policy.admin else [caller])],
        )

    @router.post(
        "/reload",
        summary="Reload backends, aliases and token policies",
        responses={409: {"model": ReloadReport, "description": "A file is broken; its last good content stays"}},
    )
    async def reload(request: Request, response: Response) -> ReloadReport:
        caller_of(request).check_admin()
        report = await reloader.reload()
        response.status_code = 200 if report.ok else 409
        return report

    return router


def _admission(backends: Iterable[Backend]) -> dict[str, Admission]:
    groups: dict[str, list[Slots]] = {}
    for backend in backends:
        for capability, slots in backend.slots.items():
            groups.setdefault(f"{backend.record.backend_class}.{capability}", []).append(slots)
    return {name: _sum(group) for name, group in sorted(groups.items())}


def _sum(group: list[Slots]) -> Admission:
    has_limit = all(slots.limit < sys.maxsize for slots in group)
    queue = group[0].queue  # the whole class's
    return Admission(
        limit=sum(slots.limit for slots in group) if has_limit else None,
        available=sum(max(0, slots.limit - slots.inflight) for slots in group) if has_limit else None,
        inflight=sum(slots.inflight for slots in group),
        queued=len(queue) if queue is not None else 0,
    )


def _health(backends: Iterable[Backend]) -> dict[str, ClassHealth]:
    classes: dict[str, dict[str, Health]] = {}
    for backend in backends:
        health = Health.model_validate(backend, from_attributes=True)
        classes.setdefault(backend.record.backend_class, {})[backend.name] = health
    return {name: _best(hosts) for name, hosts in sorted(classes.items())}


def _best(hosts: dict[str, Health]) -> ClassHealth:
    best = max(hosts.values(), key=lambda host: (host.ready, host.healthy, host.last_check or 0))
    return ClassHealth(**best.model_dump(), hosts=hosts)


def _use(caller: Caller, unenforced: frozenset[str]) -> TokenUse:
    policy, window = caller.policy, caller.window
    return TokenUse(
        name=caller.name,
        admin=policy.admin,
        models_allowlist=list(policy.models_allowlist) if policy.models_allowlist else None,
        requests_per_minute=policy.requests_per_minute,
        requests_last_minute=window.used(perf_counter()) if window is not None else None,
        tokens_per_day=policy.tokens_per_day,
        tokens_today=caller.tokens_today(),
        priority=policy.priority,
        unenforced_policy_keys=policy.without_effect(unenforced),
    )
