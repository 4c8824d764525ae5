"""Starts and ends the service, and frees what it holds."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.exceptions import RayActorError

from ray_weights.actors.connect import connect, ensure_coordinator, find_coordinator
from ray_weights.cli.answers import DroppedReplica, DropResult, Ended, Started
from ray_weights.config import ServiceSettings
from ray_weights.errors import CoordinatorUnavailable, RayWeightsError, UnknownKey
from ray_weights.key_search import models_of, select_shards
from ray_weights.observe import (
    ask,
    coordinator_status,
    gather,
    read_cluster,
    running_coordinator,
    transfer_actors_by_name,
)
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.status import CoordinatorStatus

_END_POLL_SECONDS = 0.2


def start(settings: ServiceSettings, timeout: float) -> Started:
    """Start the detached coordinator, or find the one that runs.

    Raises:
        CoordinatorUnavailable: no cluster, or no answer in time.
        RayWeightsError: one runs with another value of a setting that was asked for.
    """
    deadline = time.monotonic() + timeout
    with connect(deadline):
        already = find_coordinator() is not None
        coordinator: Any = ensure_coordinator(settings, deadline)
        running = ServiceSettings.model_validate_json(ask(coordinator.service_settings.remote(), deadline))
        conflicts = setting_conflicts(settings, running)
        if conflicts:
            raise RayWeightsError(
                f"the coordinator runs with other settings: {'; '.join(conflicts)}. Settings are those of its start: "
                "`ray-weights down` ends it with everything that it holds, then `ray-weights up` starts it with these"
            )
        record = coordinator_status(coordinator, deadline)
        address = ray.get_runtime_context().gcs_address
        return Started(already_running=already, address=address, epoch=record.epoch, settings=running)


def setting_conflicts(asked: ServiceSettings, running: ServiceSettings) -> tuple[str, ...]:
    """Settings that were asked for by name and have another value where the coordinator runs."""
    return tuple(
        f"{name} is {getattr(running, name)!r}, not {getattr(asked, name)!r}"
        for name in type(asked).model_fields
        if name in asked.model_fields_set and getattr(asked, name) != getattr(running, name)
    )


def end(timeout: float) -> Ended:
    """End the coordinator, then every transfer actor: their memory goes with them. Nothing to end is fine.

    Raises:
        CoordinatorUnavailable: no cluster, or some of them are still there after the timeout.
    """
    deadline = time.monotonic() + timeout
    with connect(deadline):
        view = read_cluster(min(deadline, time.monotonic() + timeout / 3))
        held = [p for a in view.actors for p in a.progress]
        coordinator, ended = False, set[str]()
        while True:
            # The coordinator first: it would plan for the survivors. Again and again, until nobody is left: an engine
            # that starts at this moment starts the service as well.
            handle, actors = find_coordinator(), transfer_actors_by_name()
            if handle is None and not actors:
                break
            if time.monotonic() > deadline:
                left = [*(["coordinator"] if handle is not None else []), *actors]
                raise CoordinatorUnavailable(
                    f"still there after {timeout:.0f} s: {', '.join(left)}; an engine that starts now starts them again"
                )
            coordinator |= handle is not None
            ended |= set(actors)
            for each in [*([handle] if handle is not None else []), *actors.values()]:
                ray.kill(each, no_restart=True)
            time.sleep(_END_POLL_SECONDS)
        return Ended(
            coordinator=coordinator,
            actors=tuple(sorted(ended)),
            shards=len(held),
            nbytes=sum(p.nbytes for p in held),
        )


def drop(query: str, version: int | None, timeout: float) -> DropResult:
    """Free every complete copy of one model, or of one version of it; who is still receiving is left alone.

    Raises:
        UnknownKey: nothing is named so, or more than one model is.
        CoordinatorUnavailable: no cluster, no coordinator, or no answer in time.
    """
    deadline = time.monotonic() + timeout
    with connect(deadline):
        try:
            record = coordinator_status(running_coordinator(), deadline)
            to_drop, busy = copies(query, version, record)
            actors = transfer_actors_by_name()
            actor_of = {m.member: m.actor_name for m in record.members}
            calls: dict[str, Any] = {}
            problems: dict[str, str] = {}
            for number, copy in enumerate(to_drop):
                handle = actors.get(actor_of.get(copy.member, ""))
                if handle is None:
                    problems[str(number)] = "its transfer actor is gone"
                else:
                    calls[str(number)] = handle.drop.remote(copy.shard.model_dump_json().encode(), copy.version)
            problems |= {n: a for n, a in gather(calls, deadline).items() if isinstance(a, str)}
            failed = tuple(
                c.model_copy(update={"problem": problems[str(n)]}) for n, c in enumerate(to_drop) if str(n) in problems
            )
            dropped = tuple(c for n, c in enumerate(to_drop) if str(n) not in problems)
            return DropResult(query=query, dropped=dropped, failed=failed, busy=busy)
        except RayActorError as e:
            raise CoordinatorUnavailable(str(e)) from e


def copies(
    query: str, version: int | None, record: CoordinatorStatus
) -> tuple[tuple[DroppedReplica, ...], tuple[DroppedReplica, ...]]:
    """The copies to free, and those to leave alone with the reason."""
    chosen = set(_one_model(query, tuple(s.shard for s in record.shards)))
    complete, busy = [], []
    for shard in (s for s in record.shards if s.shard in chosen):
        for v in (v for v in shard.versions if version in (None, v.version)):
            for r in v.replicas:
                copy = DroppedReplica(
                    shard=shard.shard,
                    version=v.version,
                    member=r.member,
                    node=r.node,
                    nbytes=v.seal.nbytes if v.seal is not None else 0,
                )
                if r.state in ("ready", "quarantined"):
                    complete.append(copy)
                else:
                    busy.append(copy.model_copy(update={"problem": f"left alone: it is {r.state}"}))
    if version is not None and not complete and not busy:
        known = sorted({v.version for s in record.shards if s.shard in chosen for v in s.versions})
        raise UnknownKey(f"{query} has no version {version}; there are {', '.join(map(str, known))}")
    return tuple(complete), tuple(busy)


def _one_model(query: str, known: tuple[ShardKey, ...]) -> tuple[ShardKey, ...]:
    chosen = select_shards(query, known)
    models = models_of(chosen)
    if len(models) > 1:
        raise UnknownKey(f"{query!r} names {len(models)} keys, drop frees one: {'; '.join(map(str, models))}")
    return chosen
