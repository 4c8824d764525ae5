"""A Ray cluster of several nodes on this machine, without root: real `ray start` processes on loopback addresses.

    with LocalCluster(nodes=3) as cluster, cluster.driver():
        ray.get(...)

Every node has an address of its own in 127.0.0.0/8, so that nodes can be told apart by address and a second cluster
does not get in the way. Everything the cluster writes lies in one temporary directory; leaving the `with` block, for
whatever reason, ends exactly the processes that belong to this cluster and removes that directory.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from demo_support.driver import connected
from demo_support.ports import free_loopback_addresses, free_ports
from demo_support.processes import (
    MARK,
    Process,
    processes_of_run,
    run_to_completion,
    send,
    shared_memory_of,
    wait_until_gone,
)
from demo_support.signals import held_back

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 90.0
TERMINATE_GRACE_S = 8.0
KILL_GRACE_S = 5.0
WATCH_PERIOD_S = 2.0
PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class _Node:
    address: str
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.directory / "ray-start.log"


@dataclass(slots=True)
class LocalCluster:
    """Nodes of `cpus_per_node` CPUs each; the first one is the head and runs the dashboard, which takes Ray jobs."""

    nodes: int = 3
    cpus_per_node: int = 3
    object_store_bytes: int = 100_000_000
    extra_env: Mapping[str, str] = field(default_factory=dict)

    run: str = field(default_factory=lambda: secrets.token_hex(6), init=False)
    directory: Path = field(init=False)
    env: dict[str, str] = field(init=False)
    """The environment that a process needs to be let into this cluster (address, token) and to be found at its end."""
    dashboard: str = field(init=False)
    address: str = field(init=False)
    _nodes: list[_Node] = field(default_factory=list, init=False)
    _known: list[Process] = field(default_factory=list, init=False)
    _shared_memory: set[Path] = field(default_factory=set, init=False)
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _watch: threading.Thread | None = field(default=None, init=False)

    def __enter__(self) -> LocalCluster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        left = self.stop()
        if left and error is None:
            raise RuntimeError("the cluster left something behind:\n  " + "\n  ".join(left))

    def start(self) -> None:
        """Returns when every node is up. If that fails, nothing of the cluster stays."""
        # Short, because the path of a Unix socket ends at 107 bytes and Ray's session directories are long.
        self.directory = Path(tempfile.mkdtemp(prefix="ray-weights-", dir="/tmp"))
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    @property
    def node_addresses(self) -> tuple[str, ...]:
        return tuple(node.address for node in self._nodes)

    def driver(self) -> AbstractContextManager[None]:
        """Connects this process as a Ray driver."""
        # A driver joins the node with its own address by default, and no node has this machine's.
        return connected(self.address, node_address=self._nodes[0].address, env=self.env)

    def command(self, *command: str, timeout_s: float) -> str:
        """Runs a command of the virtual environment (`ray`, `serve`, `ray-weights`) against this cluster."""
        return run_to_completion(
            [str(Path(sys.executable).parent / command[0]), *command[1:]],
            env=self.env,
            timeout_s=timeout_s,
            cwd=REPOSITORY,
        )

    def submit_job(self, *entrypoint: str, timeout_s: float) -> str:
        """`ray job submit -- ENTRYPOINT`; returns what it printed when the job has succeeded."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                left = max(1.0, deadline - time.monotonic())
                return self.command(
                    "ray", "job", "submit", "--address", self.dashboard, "--", *entrypoint, timeout_s=left
                )
            except RuntimeError as error:
                # On busy cores the agent that runs jobs comes up after all else; nothing was submitted then.
                if "No available agent" not in str(error) or time.monotonic() >= deadline:
                    raise
                time.sleep(1.0)

    def stop(self) -> list[str]:
        """Ends the cluster's processes, removes its files and returns what is left: nothing, if all is well.

        A second Ctrl-C waits: interrupted here, the cluster would stay.
        """
        with held_back():
            self._stopping.set()
            if self._watch is not None:
                self._watch.join(timeout=30.0)
            sessions = self._sessions()
            self._look_around()
            for node in reversed(self._nodes):
                if node.process is not None and node.process.poll() is None:
                    node.process.terminate()
            wait_until_gone(self.run, sessions, self._known, TERMINATE_GRACE_S)
            for process in self._look_around():
                send(process, signal.SIGKILL)
            wait_until_gone(self.run, sessions, self._known, KILL_GRACE_S)
            for node in self._nodes:
                if node.process is not None:
                    with suppress(subprocess.TimeoutExpired):
                        node.process.wait(timeout=1.0)
            for name in self._shared_memory:
                name.unlink(missing_ok=True)
            shutil.rmtree(self.directory, ignore_errors=True)
        return self.left_behind()

    def left_behind(self) -> list[str]:
        """Whatever still exists of this cluster, one line each."""
        lines = [
            f"process {process.pid}: {process.command[:120]}"
            for process in processes_of_run(self.run, self._sessions(), self._known)
        ]
        lines += [f"shared memory: {path}" for path in sorted(self._shared_memory) if path.exists()]
        if self.directory.exists():
            lines.append(f"directory: {self.directory}")
        return lines

    def engine_logs(self, lines: int = 40) -> str:
        """The last lines that each replica's processes printed: where to look when a replica does not come up."""
        parts = []
        for log in sorted(self.directory.glob("node*/session_latest/logs/worker-*.*")):
            text = log.read_text(errors="replace")
            if ":actor_name:ServeReplica" in text:
                parts.append(f"--- {log.relative_to(self.directory)}\n" + "\n".join(text.splitlines()[-lines:]))
        return "\n".join(parts)

    def _start(self) -> None:
        addresses = free_loopback_addresses(self.nodes)
        gcs_port, dashboard_port, client_port = free_ports(addresses[0], 3)
        self.address = f"{addresses[0]}:{gcs_port}"
        self.dashboard = f"http://{addresses[0]}:{dashboard_port}"
        self.env = self._environment()
        head = ["--head", f"--port={gcs_port}", f"--dashboard-host={addresses[0]}"]
        head += [f"--dashboard-port={dashboard_port}", f"--ray-client-server-port={client_port}"]
        self._watch = threading.Thread(target=self._keep_watch, name="local-cluster-watch", daemon=True)
        self._watch.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        for index, address in enumerate(addresses):
            self._start_node(index, address, head if index == 0 else [f"--address={self.address}"])
            if index == 0:
                # The head's database is up long before its dashboard: the other nodes can start meanwhile.
                self._wait_for_port(addresses[0], gcs_port, deadline)
        for node in self._nodes:
            self._wait_for_line(node, "Ray runtime started.", deadline)
        self._wait_for_port(addresses[0], dashboard_port, deadline)

    def _environment(self) -> dict[str, str]:
        token = self.directory / "auth_token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        scratch = self.directory / "tmp"
        scratch.mkdir()
        # Variables of a cluster that the user may be working on must not leak into this one.
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env.update(
            {
                MARK: self.run,
                # A job's entrypoint, such as `ray-weights up`, is looked for here.
                "PATH": f"{Path(sys.executable).parent}:{env.get('PATH', os.defpath)}",
                "TMPDIR": str(scratch),
                # In its environment from the first process on: a node started before the token exists is refused.
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(token),
                "RAY_ADDRESS": self.address,
                "RAY_API_SERVER_ADDRESS": self.dashboard,
                "RAY_DASHBOARD_ADDRESS": self.dashboard,
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
                "RAY_prestart_worker_first_driver": "0",
                "VLLM_CACHE_ROOT": str(REPOSITORY / ".cache" / "vllm"),
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
                **self.extra_env,
            }
        )
        return env

    def _start_node(self, index: int, address: str, role: list[str]) -> None:
        # A temporary directory for each: in a shared one, two nodes that start together choose the same socket names.
        node = _Node(address=address, directory=self.directory / f"node{index + 1}")
        node.directory.mkdir()
        self._nodes.append(node)
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", *role]
        command += [f"--node-ip-address={address}", f"--temp-dir={node.directory}", f"--num-cpus={self.cpus_per_node}"]
        command += ["--num-gpus=0", f"--object-store-memory={self.object_store_bytes}", "--disable-usage-stats"]
        # Its fixed port may be taken by another cluster on this machine, and then the node accepts no jobs.
        agent_port = free_ports(address, 1)[0]
        command += [f"--dashboard-agent-listen-port={agent_port}"]
        # 0: the system chooses. Ray's fixed range would be handed out once by each node.
        command += ["--min-worker-port=0", "--max-worker-port=0", "--include-log-monitor=false"]
        # A worker node started with RAY_ADDRESS set would be refused as a head, and a head as a second cluster.
        env = {name: value for name, value in self.env.items() if name != "RAY_ADDRESS"}
        with node.log.open("wb") as log:
            node.process = subprocess.Popen(
                command,
                env=env,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def _wait_for_port(self, address: str, port: int, deadline: float) -> None:
        while True:
            with suppress(OSError), socket.create_connection((address, port), timeout=1.0):
                return
            self._pause_until(deadline, f"nothing listens on {address}:{port}")

    def _wait_for_line(self, node: _Node, line: str, deadline: float) -> None:
        while line not in node.log.read_text(errors="replace"):
            self._pause_until(deadline, f"the Ray node on {node.address} is not up")

    def _pause_until(self, deadline: float, complaint: str) -> None:
        for node in self._nodes:
            if node.process is not None and node.process.poll() is not None:
                raise RuntimeError(
                    f"the Ray node on {node.address} ended while it was starting:\n"
                    + node.log.read_text(errors="replace")[-3000:]
                )
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{complaint} after {START_TIMEOUT_S:.0f} s")
        time.sleep(0.1)

    def _sessions(self) -> list[int]:
        return [node.process.pid for node in self._nodes if node.process is not None]

    def _keep_watch(self) -> None:
        """An engine that is killed leaves its shared memory, and then nothing tells any more whose it was."""
        while not self._stopping.wait(WATCH_PERIOD_S):
            self._look_around()

    def _look_around(self) -> list[Process]:
        """Notes the living processes and their shared memory, so that both are still known when parents are gone."""
        alive = processes_of_run(self.run, self._sessions(), self._known)
        self._known = alive
        self._shared_memory |= shared_memory_of(alive)
        return alive


def _end_with_parent() -> None:
    """Runs in the child: SIGTERM when the thread that started it dies, so that even a SIGKILL leaves no cluster."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
