"""Names of devices as the transfer actors know them."""

from __future__ import annotations

import torch


def device_id(device: torch.device) -> str:
    """ "cpu", or "cuda:<uuid>": an index means another GPU in a process with another CUDA_VISIBLE_DEVICES."""
    if device.type == "cpu":
        return "cpu"
    index = torch.cuda.current_device() if device.index is None else device.index
    return f"cuda:{torch.cuda.get_device_properties(index).uuid}"
