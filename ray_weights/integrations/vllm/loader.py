"""The load format "ray_weights"."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn
from vllm.logger import init_logger
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from ray_weights.errors import CaptureUnsupported, RayWeightsError
from ray_weights.integrations.vllm.key import ranks_of, shard_key
from ray_weights.integrations.vllm.options import LoaderOptions, parse_options
from ray_weights.integrations.vllm.progress import received_line, size
from ray_weights.integrations.vllm.sharing import Loaded, load_shared, tell_fall_back
from ray_weights.schemas.keys import ShardKey

if TYPE_CHECKING:
    from vllm.config import LoadConfig, ModelConfig, VllmConfig

    from ray_weights.actors.session import Session
    from ray_weights.memory.arena import MappedArena

# Named below "vllm" so that the lines pass vLLM's logging configuration and users see them.
log = init_logger("vllm.plugins.ray_weights")

_KEPT: list[MappedArena] = []
"""Mappings, for the life of the process: a restarted transfer actor finds its arenas through their descriptors."""


class RayWeightsLoader(BaseModelLoader):
    """Takes the weights from a replica that has them; reads storage, once per fleet, where none has.

    Options are those of LoaderOptions, given in model_loader_extra_config.
    """

    def __init__(self, load_config: LoadConfig) -> None:
        """Only validates: vLLM makes several loaders per worker, one of them before the worker is set up."""
        super().__init__(load_config)
        self.options: LoaderOptions = parse_options(load_config.model_loader_extra_config)
        self._loading: VllmConfig | None = None

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> nn.Module:
        # vLLM's own flow, which calls load_weights below between building the model and processing its weights; that
        # call does not carry the configuration that the key is made of.
        self._loading = vllm_config
        try:
            model: nn.Module = super().load_model(vllm_config=vllm_config, model_config=model_config, prefix=prefix)
            return model
        finally:
            self._loading = None

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        if self._loading is None:
            # Loading again in place, into a model whose weights vLLM has processed: that is vLLM's own business.
            self._read_storage(model, model_config)
            return
        try:
            self._share(model, model_config, self._loading)
        except RayWeightsError as e:
            if not self.options.fallback:
                raise
            log.warning("ray_weights: this replica reads storage by itself: %s: %s", type(e).__name__, e)
            self._read_storage(model, model_config)

    def download_model(self, model_config: ModelConfig) -> None:
        """Nothing: only a replica that reads storage needs the files, and its loader fetches them then."""

    def get_all_weights(self, model_config: ModelConfig, model: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
        """For vLLM's reload in place: the checkpoint's tensors, by vLLM's own loader."""
        inner = self._own_loader()
        if not hasattr(inner, "get_all_weights"):
            raise NotImplementedError(f"{type(inner).__name__} cannot reload weights in place")
        weights: Iterable[tuple[str, torch.Tensor]] = inner.get_all_weights(model_config, model)
        return weights

    def get_external_weight_memory(self, vllm_config: VllmConfig) -> int:
        """0: on a CPU vLLM does not ask, and on a GPU the arena is allocated after vLLM takes its snapshot of memory
        and so is counted like the engine's own. (Weights that outlived an earlier engine are there before it; then
        gpu_memory_utilization has to leave them room.)"""
        return 0

    # Parts

    def _share(self, model: nn.Module, model_config: ModelConfig, vllm_config: VllmConfig) -> None:
        device = torch.device(vllm_config.load_config.device or str(vllm_config.device_config.device))
        shard = shard_key(vllm_config, model_config, ranks_of(vllm_config), device, self.options)
        session = self._session(device)
        try:
            check_capture(model, model_config, vllm_config, device)
            loaded = load_shared(
                model,
                shard,
                session,
                device=device,
                load=lambda: self._read_storage(model, model_config),
                version=self.options.version,
                timeout=self.options.timeout_s,
                log=log,
            )
        except RayWeightsError as e:
            tell_fall_back(session, shard, self.options.version, e, log)
            raise
        finally:
            session.close()
        if loaded.mapped is not None:
            _KEPT.append(loaded.mapped)
        _report(shard, loaded)

    def _session(self, device: torch.device) -> Session:
        # Not at the top: vLLM imports this module before it forks, and Ray must not be in a forked process.
        from ray_weights.actors.session import Session
        from ray_weights.integrations.tensors.devices import device_id

        return Session(device=device_id(device), timeout=self.options.connect_timeout_s)

    def _own_loader(self) -> BaseModelLoader:
        load_format = self.options.fallback_load_format
        if self.options.weights_uri is not None and load_format == "auto":
            load_format = "runai_streamer"
        return get_model_loader(
            dataclasses.replace(
                self.load_config,
                load_format=load_format,
                model_loader_extra_config=dict(self.options.fallback_extra_config),
            )
        )

    def _read_storage(self, model: nn.Module, model_config: ModelConfig) -> None:
        if self.options.weights_uri is not None:
            model_config = copy.copy(model_config)
            model_config.model_weights = self.options.weights_uri
        self._own_loader().load_weights(model, model_config)


def check_capture(model: nn.Module, model_config: ModelConfig, vllm_config: VllmConfig, device: torch.device) -> None:
    """Raise CaptureUnsupported where vLLM would write into weights that other replicas read.

    On a CPU it may do so: the engine's mapping is copy-on-write. Device memory has no such thing, and after loading
    vLLM repacks quantized and expert weights in place, and moves experts around to balance load.
    """
    if device.type == "cpu":
        return
    if model_config.quantization is not None:
        raise CaptureUnsupported(f"quantized models ({model_config.quantization}) are not shared on {device.type} yet")
    if vllm_config.parallel_config.enable_eplb:
        raise CaptureUnsupported("a model whose experts move between GPUs (enable_eplb) cannot be shared")
    for name, part in model.named_modules():
        if any(c.__name__ in ("FusedMoE", "RoutedExperts") for c in type(part).__mro__):
            raise CaptureUnsupported(f"mixture-of-experts models ({name}) are not shared on {device.type} yet")


def _report(shard: ShardKey, loaded: Loaded) -> None:
    if loaded.role == "receiver":
        log.info(
            "ray_weights: receiver of %s version %d: %s, %.2f s in all. %s",
            shard, loaded.version, received_line(loaded.nbytes, loaded.stats), loaded.seconds, loaded.reason,
        )  # fmt: skip
        return
    rate = f"{size(loaded.nbytes / max(loaded.seconds, 1e-6))}/s"
    if loaded.not_shared is not None:
        log.warning(
            "ray_weights: read %s of %s from storage in %.2f s (%s); other replicas cannot have it from here: %s: %s",
            size(loaded.nbytes), shard, loaded.seconds, rate, type(loaded.not_shared).__name__, loaded.not_shared,
        )  # fmt: skip
        return
    log.info(
        "ray_weights: origin of %s version %d: read %s from storage in %.2f s (%s); other replicas get it from here",
        shard, loaded.version, size(loaded.nbytes), loaded.seconds, rate,
    )  # fmt: skip
