"""Whether the benchmark can run on this machine, and if not, what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

from benchmarks.network import PREFIX


def what_is_missing() -> str:
    """One sentence for the user; empty where everything is there."""
    if platform.system() != "Linux":
        return "it needs Linux: its hosts are network namespaces."
    if os.geteuid() != 0:
        return "it needs root, to make network namespaces and to shape their links: try `sudo make bench`."
    missing = [program for program in ("ip", "tc") if shutil.which(program) is None]
    if missing:
        return f"the programs {' and '.join(missing)} are not here: install iproute2 (apt-get install iproute2)."
    probe = f"{PREFIX}{os.getpid()}-probe"
    try:
        for command in (
            ["ip", "netns", "add", probe],
            ["ip", "-n", probe, "link", "add", "bench0", "type", "bridge"],
            ["ip", "-n", probe, "link", "add", "bench1", "type", "veth", "peer", "name", "bench2"],
            ["tc", "-n", probe, "qdisc", "add", "dev", "bench1", "root", "tbf", "rate", "100mbit", "burst", "98304",
             "limit", "393216"],
        ):  # fmt: skip
            done = subprocess.run(command, timeout=20, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                return f"`{' '.join(command)}` failed ({done.stderr.strip()}): in a container, it has to be privileged."
    finally:
        subprocess.run(["ip", "netns", "del", probe], timeout=20, capture_output=True, check=False)
    return ""
