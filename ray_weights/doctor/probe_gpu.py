"""Asks torch about the GPU."""

from __future__ import annotations

import torch

from ray_weights.doctor.facts import GpuFacts
from ray_weights.doctor.isolated import answer


def main() -> None:
    devices, error = [], ""
    cuda = torch.version.cuda or ""
    if cuda:
        try:
            for index in range(torch.cuda.device_count()):
                properties = torch.cuda.get_device_properties(index)
                devices.append(f"{properties.name} with {properties.total_memory / 1e9:.0f} GB")
            if not devices:
                error = "torch finds no device"
        except RuntimeError as e:
            error = str(e).splitlines()[0]
    answer(GpuFacts(present=True, torch_cuda=cuda, devices=tuple(devices), error=error).model_dump_json())


if __name__ == "__main__":
    main()
