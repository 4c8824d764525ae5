"""Reads what UCX says of the protocols it chose (UCX_PROTO_INFO=y)."""

from __future__ import annotations

import re

_TITLE = re.compile(r"remote memory read by ucp_get\S*\s+into (?P<into>\w+) memory")
_ROW = re.compile(r"\|\s*\d+\.\.inf\s*\|(?P<how>[^|]*)\|(?P<config>[^|]*)\|")


def read_path(log: str, into: str) -> str:
    """Transport and device of large reads into `into` ("host" or "cuda") memory; "" where the log does not say.

    The last table counts: UCX chooses anew when it has made the connection.
    """
    path, wanted = "", False
    for line in log.splitlines():
        if "remote memory" in line or "active message" in line or "tagged message" in line:
            title = _TITLE.search(line)
            wanted = title is not None and title["into"] == into
        elif wanted and (row := _ROW.search(line)):
            path = row["config"].strip()
    return path


def transport_of(path: str) -> str:
    """The first transport that a path names: "cma" of "cma/memory", "rc_mlx5" of "50% on rc_mlx5/mlx5_0:1 and ..."."""
    found = re.search(r"([a-z]\w*)/", path)
    return found[1] if found else ""
