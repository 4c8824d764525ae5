"""Publishes a checkpoint directory, without loading a model: its safetensors go straight into shared memory.

ray start --head
python examples/publish_safetensors.py /path/to/checkpoint --key llama
python examples/fetch.py llama
"""

from __future__ import annotations

import argparse

import ray_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a safetensors file, or a directory of them")
    parser.add_argument("--key", required=True)
    parser.add_argument("--version", type=int, default=1)
    arguments = parser.parse_args()

    done = ray_weights.publish(arguments.checkpoint, key=arguments.key, version=arguments.version)
    print(f"published {done.key} version {done.version}: {done.nbytes / 1e6:.1f} MB in {done.seconds:.2f} s")
    print(f"digest {done.digest}")


if __name__ == "__main__":
    main()
