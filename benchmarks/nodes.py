"""One real `ray start` per host, and the end of all that they started."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.network import Host, processes_in

REPOSITORY: Final = Path(__file__).resolve().parents[1]
PORT: Final = 6379
_START_SECONDS: Final = 120.0
_SHIM: Final = '''"""Ray looks for `nixl`; the wheels are called by the CUDA version that they were built for."""
import importlib
import sys

for _name in ("nixl_cu12", "nixl_cu13"):
    try:
        _real = importlib.import_module(_name)
    except ImportError:
        continue
    for _part in ("_api", "_bindings", "_utils", "logging"):
        try:
            sys.modules[f"nixl.{_part}"] = importlib.import_module(f"{_name}.{_part}")
        except ImportError:
            continue
    from importlib import import_module as _import_module
    globals().update({k: v for k, v in vars(_real).items() if not k.startswith("__")})
    break
else:
    raise ImportError("neither nixl_cu12 nor nixl_cu13 is installed")
'''


class RayNodes:
    """Ray nodes, the first of them the head. Use as a context manager."""

    def __init__(self, settings: dict[str, str], object_store_nbytes: int) -> None:
        """`settings`: further environment variables for everything that runs on the nodes."""
        self._settings = settings
        self._object_store = object_store_nbytes
        self._started: list[tuple[Host, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> RayNodes:
        # Short, because it becomes part of the paths of sockets.
        self.directory = Path(tempfile.mkdtemp(prefix="rwbench-", dir="/tmp"))
        shim = self.directory / "alias" / "nixl"
        shim.mkdir(parents=True)
        (shim / "__init__.py").write_text(_SHIM)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "UCX_", "NIXL_"))}
        self.environment |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": f"{REPOSITORY}:{shim.parent}",
            "TMPDIR": str(self.directory),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_IGNORE_UNHANDLED_ERRORS": "1",
            "RAY_enable_metrics_collection": "0",
            "RAY_prestart_worker_first_driver": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "OMP_NUM_THREADS": "1",
            # Ray's default of 15 makes the workers wait for whatever else the machine does.
            "RAY_worker_niceness": "0",
            **self._settings,
        }
        return self

    def __exit__(self, *_: object) -> None:
        """End every process of the hosts' namespaces, and remove what they wrote."""
        for _, process in reversed(self._started):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 15.0
        hosts = [host for host, _ in self._started]
        while time.monotonic() < deadline and any(processes_in(h.namespace) for h in hosts):
            time.sleep(0.2)
        for host in hosts:
            for pid in processes_in(host.namespace):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        for _, process in self._started:
            process.wait(timeout=10)
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self, host: Host, head: Host, *, second: int = 0) -> None:
        """Start one node and wait until it is up. `second`: its number, for more than one node on a host."""
        is_head = not self._started
        directory = self.directory / f"n{len(self._started)}"
        directory.mkdir()
        command = ["ray", "start", "--block", f"--node-ip-address={host.address}", f"--temp-dir={directory}"]
        command += ["--num-cpus=4", "--num-gpus=0", f"--object-store-memory={self._object_store}"]
        command += [
            "--disable-usage-stats",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--include-log-monitor=false",
        ]
        if is_head:
            command += ["--head", f"--port={PORT}", "--include-dashboard=false"]
        else:
            command += [f"--address={head.address}:{PORT}"]
        log = directory / "start.log"
        with log.open("wb") as out:
            # A session of its own: Ctrl-C in the terminal must reach us alone, so that things end in order.
            process = subprocess.Popen(
                host.inside(*command), env=self.environment, cwd=REPOSITORY, stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._started.append((host, process))
        deadline = time.monotonic() + _START_SECONDS
        while b"Ray runtime started." not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the Ray node on {host.name} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
