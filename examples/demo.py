#!/usr/bin/env python3
"""The main job, end to end, on one machine without a GPU: a vLLM app on Ray Serve scales from 1 to 3 replicas.

The first replica reads the checkpoint from disk; the new ones get the weights from it. Then every replica is asked for
greedy completions, which must be plain vLLM's, token by token. `make demo` runs this.

Exit status: 0 when all is as it should be; 1 when a replica answers otherwise, or took its weights from disk, or
something was left behind; 130 and 143 after Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from demo_support.checkpoint import DEFAULT_CACHE, DEMO, TINY, ensure_checkpoint, size_in_bytes
from demo_support.cluster import LocalCluster
from demo_support.completions import Completion, differences, why_too_dull
from demo_support.plain_vllm import ask_plain_vllm
from demo_support.ports import free_ports
from demo_support.replicas import ReplicaAnswers, ask_every_replica, import_what_asking_needs
from demo_support.screen import Phase, Screen
from demo_support.serve_app import AppFailed, ServeApp
from demo_support.weights import Report, copies_now, report, start_coordinator
from rich.console import Console

REPLICAS = 3
REPLICA_TIMEOUT_S = 240.0


def main() -> int:
    arguments = _arguments()
    console = Console(stderr=arguments.json)  # so that standard output has the JSON and nothing else
    screen = Screen(console)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))

    spec = TINY if arguments.tiny else DEMO
    with screen.phase("checkpoint"):
        checkpoint = ensure_checkpoint(spec, arguments.cache)
    with screen.phase("plain vLLM, to compare with"):
        expected = ask_plain_vllm(checkpoint)
    if dull := why_too_dull(expected):
        console.print(f"[red]these completions prove nothing: {dull}[/red]")
        return 1

    app = ServeApp(checkpoint, free_ports("127.0.0.1", 1)[0], arguments.load_format)
    ours = app.effective_load_format == "ray_weights"
    cluster = LocalCluster(nodes=REPLICAS)
    with screen.phase("Ray cluster of three nodes"):
        cluster.start()
    try:
        answers, weights = _scale(screen, cluster, app, ours)
    except AppFailed as error:
        console.print(f"{error}\n{cluster.engine_logs()}", markup=False, highlight=False)
        return 1
    finally:
        with screen.phase("clean-up"):
            left = cluster.stop()

    complaints = _complaints(expected, answers, weights) + [f"left behind: {what}" for what in left]
    if weights is not None:
        screen.tree(weights)
    for complaint in complaints:
        console.print(f"[red]✗[/red] {complaint}", highlight=False)
    if not complaints:
        console.print(f"[green]✓[/green] {len(answers)} replicas answer as plain vLLM does, token by token")
    console.print(f"{sum(screen.seconds.values()):.0f} s in all, {size_in_bytes(checkpoint) / 1e6:.0f} MB of weights")
    if arguments.json:
        print(_json(app, screen, answers, weights, complaints))
    return 1 if complaints else 0


def _scale(
    screen: Screen, cluster: LocalCluster, app: ServeApp, ours: bool
) -> tuple[list[ReplicaAnswers], Report | None]:
    def show(phase: Phase, states: str) -> None:
        phase.say(states, copies_now() if ours else ())

    with cluster.driver():
        if ours:
            with screen.phase("coordinator, by `ray job submit -- ray-weights up`"):
                start_coordinator(cluster)
        with screen.phase("1 replica, from disk") as phase:
            app.deploy(cluster, replicas=1)
            import_what_asking_needs()
            app.wait_until_running(replicas=1, timeout_s=REPLICA_TIMEOUT_S, on_poll=partial(show, phase))
        with screen.phase(f"{REPLICAS} replicas") as phase:
            app.deploy(cluster, replicas=REPLICAS)
            app.wait_until_running(replicas=REPLICAS, timeout_s=REPLICA_TIMEOUT_S, on_poll=partial(show, phase))
        with screen.phase("asking every replica"):
            answers = ask_every_replica(
                app=app.name, deployment=app.deployment, model_id=app.model_id, replicas=REPLICAS
            )
        return answers, report() if ours else None


def _complaints(expected: tuple[Completion, ...], answers: list[ReplicaAnswers], weights: Report | None) -> list[str]:
    complaints = [
        f"the replica on {answer.node_ip} differs: {line}"
        for answer in answers
        for line in differences(expected, answer.completions)
    ]
    return complaints + (weights.complaints(REPLICAS) if weights is not None else [])


def _json(
    app: ServeApp, screen: Screen, answers: list[ReplicaAnswers], weights: Report | None, complaints: list[str]
) -> str:
    return json.dumps(
        {
            "ok": not complaints,
            "complaints": complaints,
            "load_format": app.effective_load_format,
            "seconds": screen.seconds,
            "weights": asdict(weights) if weights is not None else None,
            "replicas": [
                {
                    "replica": answer.replica_id,
                    "node": answer.node_ip,
                    "token_ids": [completion.token_ids for completion in answer.completions],
                }
                for answer in answers
            ],
        },
        indent=2,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load-format", help="another one than serve_apps/llm-cpu.yaml has, such as vLLM's own: auto")
    parser.add_argument("--tiny", action="store_true", help="a checkpoint of 9 MB instead of 300")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where checkpoints are kept")
    parser.add_argument("--json", action="store_true", help="print the results as JSON, all else on standard error")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
