"""Addresses and ports of this machine that nobody uses."""

from __future__ import annotations

import random
import socket


def free_loopback_addresses(count: int) -> list[str]:
    # Not 127.0.0.1: Ray replaces it by the machine's outer address.
    network = f"127.{random.randrange(1, 255)}.{random.randrange(0, 255)}"
    addresses = [f"{network}.{host}" for host in range(1, count + 1)]
    try:
        free_ports(addresses[-1], 1)
    except OSError as error:
        raise RuntimeError(f"this system does not route {addresses[-1]} to itself: run the demo on Linux") from error
    return addresses


def free_ports(address: str, count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((address, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
