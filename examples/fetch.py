"""Fetches what another process published, on any node of the cluster.

python examples/fetch.py KEY
python examples/fetch.py example/policy --into-module
"""

from __future__ import annotations

import argparse

import ray_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("key")
    parser.add_argument("--version", type=int, help="the newest when not given")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds")
    parser.add_argument("--into-module", action="store_true", help="copy into the module of publish_module.py")
    arguments = parser.parse_args()

    module = None
    if arguments.into_module:
        from publish_module import build_policy

        module = build_policy()
    got = ray_weights.fetch(arguments.key, version=arguments.version, into=module, timeout=arguments.timeout)
    rate = got.nbytes / 1e6 / got.seconds
    print(
        f"fetched {got.key} version {got.version}: {got.nbytes / 1e6:.1f} MB in {got.seconds:.2f} s ({rate:.0f} MB/s)"
    )
    print(f"{len(got.tensors)} tensors; {got.reason}")
    print(f"digest {got.digest}")


if __name__ == "__main__":
    main()
