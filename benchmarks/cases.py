"""The cases that the service itself is measured in."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import ray
from ray.exceptions import RayError

from benchmarks.meter import Meter
from benchmarks.replica import Got
from benchmarks.results import Trial
from benchmarks.stage import LEAD_SECONDS, Stage

SLOW_HOST = 1
"""First in the order in which receivers are placed: the head of the chain, where a slow member does most harm."""


def lone(stage: Stage, repeat: int) -> Trial:
    return stage.measure("lone", "one receiver", repeat, [1])


def at_once(stage: Stage, receivers: int, repeat: int) -> Trial:
    return stage.measure(f"once-{receivers}", f"1 → {receivers} at once", repeat, range(1, receivers + 1))


def staggered(stage: Stage, receivers: int, spread: float, repeat: int) -> Trial:
    """Receivers that come one after another, evenly over `spread` times a lone transfer."""
    step = spread * stage.sizes.line_seconds / max(1, receivers - 1)
    label = f"1 → {receivers}, arriving over {spread:g} of a lone transfer"
    return stage.measure(
        f"staggered-{spread:g}", label, repeat, range(1, receivers + 1), [i * step for i in range(receivers)]
    )


def several_sources(stage: Stage, sources: int, repeat: int) -> Trial:
    """The rest of the hosts receive while `sources` hosts have complete copies."""
    last = len(stage.hosts) - 1
    first, rest = range(1, sources), range(sources, last + 1)
    with stage.weights(range(1, last + 1)) as model:
        ray.get(stage.receive(model, first), timeout=600)
        calls, meter = stage.status().calls, Meter(stage.network, stage.pids())
        got = ray.get(stage.receive(model, rest), timeout=600)
        label = f"{sources} complete sources → {len(rest)} at once"
        return stage.trial(f"sources-{sources}", label, repeat, got, meter.read(), stage.status().calls - calls)


def straggler(stage: Stage, repeat: int) -> Trial:
    """All hosts at once, one of them with a link of a quarter of the rate that nobody knows of yet."""
    slow = stage.hosts[SLOW_HOST]
    receivers = range(1, len(stage.hosts))
    forget(stage, SLOW_HOST)
    stage.network.shape(slow, stage.sizes.link_rate / 4)
    try:
        with stage.weights(receivers) as model:
            calls, meter = stage.status().calls, Meter(stage.network, stage.pids())
            got = ray.get(stage.receive(model, receivers), timeout=600)
            used, calls = meter.read(), stage.status().calls - calls
    finally:
        stage.network.shape(slow, stage.sizes.link_rate)
        forget(stage, SLOW_HOST)
    others = [g for g in got if g.host != slow.name]
    own = next(g for g in got if g.host == slow.name)
    label = f"1 → {len(got)} at once, one link at a quarter of the rate: the others"
    return stage.trial("straggler", label, repeat, others, used, calls, slow_seconds=own.ended - own.began)


def parent_killed(stage: Stage, repeat: int) -> Trial:
    """A chain of three receivers; the first one's transfer actor is killed half-way."""
    receivers = [1, 2, 3]
    with stage.weights(receivers) as model:
        pids, calls = stage.pids(), stage.status().calls
        meter = Meter(stage.network, pids)
        pending = stage.receive(model, receivers)
        victim = _parent_half_way(stage, model)
        killed_at = time.time()
        os.kill(pids[stage.hosts[victim].name], signal.SIGKILL)
        got: list[Got] = []
        for host, answer in zip(receivers, pending, strict=True):
            if host != victim:
                got.append(ray.get(answer, timeout=600))
                continue
            with contextlib.suppress(RayError):  # it may also begin again, with its restarted transfer actor
                ray.get(answer, timeout=600)
        used, calls = meter.read(), stage.status().calls - calls
        stage.wait_for_restart(victim, pids)
        wrong = stage.wrong_bytes(model, [i for i in receivers if i != victim])
        label = "chain of 3, the first receiver killed half-way: the others"
        return stage.trial(
            "killed", label, repeat, got, used, calls,
            moved_after=_first_move(stage, model, killed_at), read_again=float(max(g.read_again for g in got)),
            wrong_bytes=float(wrong),
        )  # fmt: skip


def link_cut(stage: Stage, repeat: int) -> Trial:
    """A chain of three receivers; the first one's link is cut half-way, until the others are done."""
    receivers = [1, 2, 3]
    with stage.weights(receivers) as model:
        calls, meter = stage.status().calls, Meter(stage.network, stage.pids())
        pending = dict(zip(receivers, stage.receive(model, receivers), strict=True))
        victim = _parent_half_way(stage, model)
        cut_at = time.time()
        with stage.network.cut(stage.hosts[victim]):
            got = ray.get([a for i, a in pending.items() if i != victim], timeout=120)
        used, calls = meter.read(), stage.status().calls - calls
        later: Got = ray.get(pending[victim], timeout=120)
        label = "chain of 3, the first receiver's link cut half-way: the others"
        return stage.trial(
            "cut", label, repeat, got, used, calls, moved_after=_first_move(stage, model, cut_at),
            read_again=float(max(g.read_again for g in got)), cut_off_seconds=later.ended - later.began,
            wrong_bytes=float(stage.wrong_bytes(model, receivers)),
        )  # fmt: skip


def forget(stage: Stage, host: int) -> None:
    """Restart a host's transfer actor, so that no rate of it is known."""
    before = stage.pids()
    os.kill(before[stage.hosts[host].name], signal.SIGKILL)
    stage.wait_for_restart(host, before)


def _parent_half_way(stage: Stage, model: str) -> int:
    """Waits until receivers asked now have half; returns the host of one that reads from the origin and has a child."""
    time.sleep(LEAD_SECONDS + 0.5 * stage.sizes.line_seconds)
    versions = [v for s in stage.status().shards if s.shard.model.model == model for v in s.versions]
    replicas = [replica for version in versions for replica in version.replicas]
    names = [h.name for h in stage.hosts]
    for replica in replicas:
        fed_by_origin = any(stage.host_of(u) == stage.hosts[0].name for u in replica.upstreams)
        if replica.state == "receiving" and fed_by_origin and any(replica.member in r.upstreams for r in replicas):
            return names.index(stage.host_of(replica.member))
    raise RuntimeError("no receiver has a child: the chain was not there when the kill was due")


def _first_move(stage: Stage, model: str, since: float) -> float:
    """Seconds until the coordinator had moved somebody to another upstream."""
    return min(x.at for x in stage.story(model) if x.at > since and x.what.startswith("moved")) - since
