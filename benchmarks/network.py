"""Hosts made of network namespaces, joined by a switch whose ports are shaped in both directions.

Nothing is made outside the namespaces: the switch is a namespace too, so taking the namespaces away takes all away.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PREFIX: Final = "rwbench-"
MTU: Final = 9000
_TIMEOUT: Final = 20.0
BURST_NBYTES: Final = 72 * 1024
"""Above the 64 KiB that the kernel hands over at once, which the shaper would otherwise have to cut up."""


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace with one link to the switch."""

    name: str
    namespace: str
    port: str
    """The link's end at the switch."""
    address: str

    def inside(self, *command: str) -> list[str]:
        """A command line that runs `command` in this host's network."""
        return ["ip", "netns", "exec", self.namespace, *command]


@dataclass(frozen=True, slots=True)
class LinkBytes:
    """What a host has sent and received, with all headers, since its link was made."""

    sent: int
    received: int


class Network:
    """A switch and its hosts. Use as a context manager."""

    def __init__(self, names: tuple[str, ...], owner_pid: int) -> None:
        """The namespaces carry `owner_pid` in their names, so that a later run can tell which ones are left over."""
        stem = f"{PREFIX}{owner_pid}"
        self.switch: Final = f"{stem}-switch"
        self.hosts: Final = tuple(
            Host(name, f"{stem}-{name}", f"p-{name}", f"10.213.0.{i + 1}") for i, name in enumerate(names)
        )

    def __enter__(self) -> Network:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for namespace in (*(h.namespace for h in self.hosts), self.switch):
            remove_namespace(namespace)

    def shape(self, host: Host, bytes_per_second: float | None) -> None:
        """Limit what a host sends (at its own end) and receives (at the switch's); None takes the limit away."""
        ends = ((host.namespace, "eth0"), (self.switch, host.port))
        for namespace, device in ends:
            if bytes_per_second is None:
                subprocess.run(
                    ["tc", "-n", namespace, "qdisc", "del", "dev", device, "root"],
                    timeout=_TIMEOUT, capture_output=True, check=False,
                )  # fmt: skip
                continue
            rate = f"{int(bytes_per_second * 8)}bit"
            # Short, as behind a NIC: requests must not stand in line behind several chunks.
            limit = str(2 * BURST_NBYTES)
            _run("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf",
                 "rate", rate, "burst", str(BURST_NBYTES), "limit", limit)  # fmt: skip

    @contextmanager
    def cut(self, host: Host) -> Iterator[None]:
        """Pull a host's cable for a while: packets are lost both ways, and nobody is told."""
        _run("ip", "-n", self.switch, "link", "set", host.port, "down")
        try:
            yield
        finally:
            _run("ip", "-n", self.switch, "link", "set", host.port, "up")

    def counters(self) -> dict[str, LinkBytes]:
        """By host name, as the switch's ports have counted."""
        listed = json.loads(_run("ip", "-n", self.switch, "-s", "-j", "link", "show", "type", "veth"))
        by_port = {link["ifname"]: link["stats64"] for link in listed}
        return {h.name: LinkBytes(by_port[h.port]["rx"]["bytes"], by_port[h.port]["tx"]["bytes"]) for h in self.hosts}

    def _build(self) -> None:
        _run("ip", "netns", "add", self.switch)
        _run("ip", "-n", self.switch, "link", "add", "name", "bridge0", "mtu", str(MTU), "type", "bridge")
        _run("ip", "-n", self.switch, "link", "set", "bridge0", "up")
        for host in self.hosts:
            _run("ip", "netns", "add", host.namespace)
            _run("ip", "-n", self.switch, "link", "add", host.port, "mtu", str(MTU), "type", "veth",
                 "peer", "name", "eth0", "mtu", str(MTU), "netns", host.namespace)  # fmt: skip
            _run("ip", "-n", self.switch, "link", "set", host.port, "master", "bridge0", "up")
            _run("ip", "-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run("ip", "-n", host.namespace, "link", "set", device, "up")


def processes_in(namespace: str) -> tuple[int, ...]:
    """Every process whose network a namespace of ours is: it was started by this benchmark, or by what it started."""
    listed = subprocess.run(
        ["ip", "netns", "pids", namespace], timeout=_TIMEOUT, capture_output=True, text=True, check=False
    )
    return tuple(int(pid) for pid in listed.stdout.split())


def remove_namespace(namespace: str) -> None:
    """End what still runs in a namespace, each process by its id, and delete it. Does nothing where there is none."""
    assert namespace.startswith(PREFIX), namespace
    if not Path("/run/netns", namespace).exists():
        return
    deadline = time.monotonic() + 10.0
    while (running := processes_in(namespace)) and time.monotonic() < deadline:
        for pid in running:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        time.sleep(0.05)
    subprocess.run(["ip", "netns", "del", namespace], timeout=_TIMEOUT, capture_output=True, check=False)


def remove_leftovers() -> tuple[str, ...]:
    """Remove the namespaces of runs whose process is gone (it was killed by SIGKILL); returns their names."""
    left = []
    for path in sorted(Path("/run/netns").glob(f"{PREFIX}*")):
        owner = re.match(rf"{PREFIX}(\d+)-", path.name)
        if owner and not Path("/proc", owner[1]).exists():
            remove_namespace(path.name)
            left.append(path.name)
    return tuple(left)


def _run(*command: str) -> str:
    done = subprocess.run(command, timeout=_TIMEOUT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
