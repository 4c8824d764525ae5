"""The key of the weights that a vLLM worker wants: everything that decides their bytes, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ray_weights.integrations.tensors.fingerprint import checkpoint_fingerprint
from ray_weights.schemas.keys import ModelKey, ShardKey

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

    from ray_weights.integrations.vllm.options import LoaderOptions


@dataclass(frozen=True, slots=True)
class Ranks:
    """Position of this worker in each parallel dimension, and the sizes of those."""

    tp: int = 0
    tp_size: int = 1
    pp: int = 0
    pp_size: int = 1
    ep: int = 0
    ep_size: int = 1
    placement: str = ""
    """How experts are dealt out to expert-parallel ranks; "" without expert parallelism."""

    @property
    def sizes(self) -> str:
        """For example "tp2" or "tp2 pp2"; "" on one worker."""
        parts = [f"{n}{s}" for n, s in (("tp", self.tp_size), ("pp", self.pp_size), ("ep", self.ep_size)) if s > 1]
        return " ".join([*parts, self.placement] if self.ep_size > 1 else parts)

    @property
    def position(self) -> str:
        """For example "tp1"; "" on one worker."""
        dimensions = (("tp", self.tp, self.tp_size), ("pp", self.pp, self.pp_size), ("ep", self.ep, self.ep_size))
        return " ".join(f"{n}{r}" for n, r, s in dimensions if s > 1)


def ranks_of(vllm_config: VllmConfig) -> Ranks:
    """Ranks of this process, which must have vLLM's parallel groups.

    Data parallelism counts only under expert parallelism: there it decides which experts a rank holds. Otherwise its
    ranks hold the same weights and should share them.
    """
    from vllm.distributed import get_ep_group, get_pp_group, get_tp_group

    tp, pp = get_tp_group(), get_pp_group()
    parallel = vllm_config.parallel_config
    ep, ep_size, placement = 0, 1, ""
    if parallel.enable_expert_parallel:
        try:
            group = get_ep_group()
        except AssertionError:
            pass  # vLLM makes this group for mixture-of-experts models only
        else:
            ep, ep_size, placement = group.rank_in_group, group.world_size, str(parallel.expert_placement_strategy)
    return Ranks(
        tp=tp.rank_in_group,
        tp_size=tp.world_size,
        pp=pp.rank_in_group,
        pp_size=pp.world_size,
        ep=ep,
        ep_size=ep_size,
        placement=placement,
    )


def shard_key(
    vllm_config: VllmConfig, model_config: ModelConfig, ranks: Ranks, device: torch.device, options: LoaderOptions
) -> ShardKey:
    """The key of one worker's weights, as they are after load_weights and before vLLM repacks them.

    Must be taken before loading: later vLLM may rewrite the quantization config that is part of it.
    """
    import vllm

    return ShardKey(
        model=ModelKey(
            model=options.model_name or str(model_config.model),
            revision=revision_of(model_config, options.weights_uri),
            dtype=str(model_config.dtype).removeprefix("torch."),
            quantization=_quantization(model_config),
            parallel=ranks.sizes,
            capture="raw",
            engine=f"vllm {vllm.__version__}",
            device=device_architecture(device),
            role="draft" if is_draft(vllm_config, model_config) else "target",
        ),
        rank=ranks.position,
    )


def is_draft(vllm_config: VllmConfig, model_config: ModelConfig) -> bool:
    """Whether this is the draft model of speculative decoding; it may come from the target's own checkpoint."""
    speculative = vllm_config.speculative_config
    return model_config.runner_type == "draft" or (
        speculative is not None and model_config is speculative.draft_model_config
    )


def revision_of(model_config: ModelConfig, weights_uri: str | None = None) -> str:
    """The fingerprint of a local checkpoint, the commit of one from a hub, or the URI it is read from."""
    if weights_uri is not None:
        # The directory holds the weights on some nodes and not on others, so it cannot be what names them.
        return weights_uri
    if os.path.exists(model_config.model):
        return checkpoint_fingerprint(model_config.model)
    commit = getattr(model_config.hf_config, "_commit_hash", None)
    return str(commit or model_config.revision or "")


def device_architecture(device: torch.device) -> str:
    """For example "cpu" or "sm_90"."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _quantization(model_config: ModelConfig) -> str:
    if model_config.quantization is None:
        return ""
    checkpoint: Any = getattr(model_config.hf_config, "quantization_config", None)
    if hasattr(checkpoint, "to_dict"):
        checkpoint = checkpoint.to_dict()
    settings = json.dumps([checkpoint, model_config.quantization_config], sort_keys=True, default=str)
    return f"{model_config.quantization} {hashlib.sha256(settings.encode()).hexdigest()[:12]}"
