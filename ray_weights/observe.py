"""Reads what goes on in the cluster: the coordinator's record, and progress from the transfer actors themselves.

Starts nothing, and nothing that it asks waits longer than the timeout.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from ray_weights.actors.connect import connect, find_coordinator
from ray_weights.actors.names import NAMESPACE, TRANSFER_PREFIX
from ray_weights.actors.remote_errors import what_happened
from ray_weights.errors import CoordinatorUnavailable
from ray_weights.key_search import models_of, namesakes, select_shards
from ray_weights.schemas.keys import ShardKey
from ray_weights.schemas.status import CoordinatorStatus, StoryLine, TransferProgress
from ray_weights.schemas.view import ActorView, ClusterView, Explanation, KeyDifference, ReplicaStory, ShardExplanation

NO_COORDINATOR = "no coordinator runs in this cluster; the first replica starts it, or `ray-weights up`"
_COORDINATOR = "the coordinator"


def status(timeout: float = 10.0) -> ClusterView:
    """Every key, who has it and who receives it, with progress as the transfer actors tell it.

    Raises:
        CoordinatorUnavailable: no cluster can be reached. A missing or silent coordinator is part of the view.
    """
    deadline = time.monotonic() + timeout
    with connect(deadline):
        return read_cluster(deadline)


def read_record(timeout: float = 10.0) -> CoordinatorStatus:
    """What the coordinator knows, without asking the transfer actors.

    Raises:
        CoordinatorUnavailable: no cluster, no coordinator, or no answer in time.
    """
    deadline = time.monotonic() + timeout
    with connect(deadline):
        return coordinator_status(running_coordinator(), deadline)


def explain(key: str, timeout: float = 10.0) -> Explanation:
    """What happened to every replica of the models that `key` names, and what keeps keys of one model apart.

    Args:
        key: a model's name, the beginning or a part of it.
        timeout: seconds.

    Raises:
        UnknownKey: nothing is named so; the message names the closest.
        CoordinatorUnavailable: no cluster, no coordinator, or no answer in time.
    """
    deadline = time.monotonic() + timeout
    with connect(deadline):
        coordinator = running_coordinator()
        record = coordinator_status(coordinator, deadline)
        told = ask(coordinator.told_shards.remote(), deadline)
        present = [s.shard for s in record.shards]
        known = list(dict.fromkeys([*present, *(ShardKey.model_validate_json(s) for s in told)]))
        chosen = select_shards(key, known)
        stories = {
            s: tuple(
                StoryLine.model_validate_json(line)
                for line in ask(coordinator.story.remote(s.model_dump_json().encode()), deadline)
            )
            for s in chosen
        }
        return explanation(key, chosen, tuple(known), record, stories)


def explanation(
    query: str,
    chosen: tuple[ShardKey, ...],
    known: tuple[ShardKey, ...],
    record: CoordinatorStatus,
    stories: Mapping[ShardKey, tuple[StoryLine, ...]],
) -> Explanation:
    """Put the lines of each replica together with what it is now."""
    versions = {s.shard: s.versions for s in record.shards}
    shards = []
    for shard in chosen:
        now = {(r.member, v.version): r for v in versions.get(shard, ()) for r in v.replicas}
        lines: dict[tuple[str, int | None], list[StoryLine]] = {}
        for line in stories.get(shard, ()):
            lines.setdefault((line.member, line.version), []).append(line)
        for here in now:
            lines.setdefault(here, [])
        replicas = []
        for (member, version), told in lines.items():
            replica = now.get((member, version)) if version is not None else None
            node = replica.node if replica is not None else told[-1].node
            replicas.append(ReplicaStory(member=member, node=node, version=version, status=replica, lines=tuple(told)))
        shards.append(ShardExplanation(shard=shard, versions=versions.get(shard, ()), replicas=tuple(replicas)))
    meant = set(models_of(chosen))
    differences = tuple(
        KeyDifference(first=a, second=b, fields=a.differing_fields(b), difference=why)
        for a, b, why in namesakes(models_of(known))
        if a in meant or b in meant
    )
    return Explanation(query=query, shards=tuple(shards), differences=differences)


def read_cluster(deadline: float) -> ClusterView:
    """As status(), in a process that is connected. `deadline` is of time.monotonic()."""
    actors = transfer_actors_by_name()
    refs = {name: handle.progress.remote() for name, handle in actors.items()}
    coordinator: Any = find_coordinator()
    if coordinator is not None:
        refs[_COORDINATOR] = coordinator.status.remote()
    answers = gather(refs, deadline)
    problem, record = NO_COORDINATOR, None
    if coordinator is not None:
        answer = answers.pop(_COORDINATOR)
        if isinstance(answer, str):
            problem = f"the coordinator {answer}"
        else:
            problem, record = "", CoordinatorStatus.model_validate_json(answer)
    views = [
        ActorView(actor_name=name, problem=answer)
        if isinstance(answer, str)
        else ActorView(actor_name=name, progress=tuple(TransferProgress.model_validate_json(p) for p in answer))
        for name, answer in sorted(answers.items())
    ]
    return ClusterView(taken_at=time.time(), coordinator=record, coordinator_problem=problem, actors=tuple(views))


def running_coordinator() -> Any:
    """Raises CoordinatorUnavailable when there is none."""
    handle: Any = find_coordinator()
    if handle is None:
        raise CoordinatorUnavailable(NO_COORDINATOR)
    return handle


def coordinator_status(coordinator: Any, deadline: float) -> CoordinatorStatus:
    return CoordinatorStatus.model_validate_json(ask(coordinator.status.remote(), deadline))


def transfer_actors_by_name() -> dict[str, Any]:
    """All transfer actors of the cluster, also those that Ray is starting again."""
    found: dict[str, Any] = {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        name = str(actor["name"])
        if actor["namespace"] == NAMESPACE and name.startswith(TRANSFER_PREFIX):
            try:
                found[name] = ray.get_actor(name, namespace=NAMESPACE)
            except ValueError:
                continue  # ended meanwhile
    return found


def gather(refs: Mapping[str, Any], deadline: float) -> dict[str, Any]:
    """The answer of every call, by name; a string says why there is none. None of them holds up another."""
    left = max(0.05, deadline - time.monotonic())
    ready: set[Any] = set()
    if refs:
        done, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=left)
        ready = set(done)
    answers: dict[str, Any] = {}
    for name, ref in refs.items():
        if ref not in ready:
            answers[name] = f"did not answer within {left:.1f} s"
            continue
        try:
            answers[name] = ray.get(ref)
        except (RayActorError, RayTaskError) as e:
            answers[name] = f"cannot answer: {what_happened(e)}"
    return answers


def ask(ref: Any, deadline: float) -> Any:
    """An answer of the coordinator. Raises CoordinatorUnavailable."""
    answer = gather({_COORDINATOR: ref}, deadline)[_COORDINATOR]
    if isinstance(answer, str):
        raise CoordinatorUnavailable(f"{_COORDINATOR} {answer}; `ray-weights doctor` tells more")
    return answer
