"""Publishes a torch module to every process of a Ray cluster, as a trainer does after each step.

ray start --head
python examples/publish_module.py
python examples/fetch.py example/policy --into-module
"""

from __future__ import annotations

import argparse

import torch

import ray_weights


def build_policy() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(1024, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--key", default="example/policy")
    parser.add_argument("--versions", type=int, default=3, help="how many steps to take")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    policy = build_policy()
    for version in range(1, arguments.versions + 1):
        with torch.no_grad():
            for p in policy.parameters():
                p.add_(0.01 * torch.randn_like(p))  # stands for a training step
        done = ray_weights.publish(policy, key=arguments.key, version=version)
        print(f"published {done.key} version {done.version}: {done.nbytes / 1e6:.1f} MB in {done.seconds:.2f} s")


if __name__ == "__main__":
    main()
