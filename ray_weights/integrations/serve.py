"""Ray Serve: an LLMConfig whose replicas share weights.

    from ray import serve
    from ray.serve.llm import build_openai_app
    from ray_weights.integrations.serve import llm_config

    config = llm_config(model_loading_config={"model_id": "llama", "model_source": "meta-llama/Llama-3.1-8B"})
    serve.run(build_openai_app({"llm_configs": [config]}))

In a YAML file, `engine_kwargs: {load_format: ray_weights}` does the same for models from a local path or a hub.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.common.utils.cloud_utils import is_remote_path
from ray.llm._internal.common.utils.download_utils import NodeModelDownloadable

from ray_weights.errors import ConfigError
from ray_weights.integrations.vllm.options import parse_options

if TYPE_CHECKING:
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig as _LLMConfig
    from ray.serve.llm import LLMConfig

LOAD_FORMAT = "ray_weights"
CALLBACK = "ray_weights.integrations.serve:LeaveWeightsInStore"


class LeaveWeightsInStore(CallbackBase):
    """Keeps Ray from downloading weights to every node for a model in an object store (s3://, gs://, ...).

    For load formats that it does not know, Ray downloads the whole model to each node before the engine starts there:
    what ray_weights is there to save. With this callback it downloads all but the safetensors; the origin alone reads
    those, from the store. Models from a path or a hub are left as they are: Ray does not download those itself.
    """

    async def on_before_node_init(self) -> None:
        if model_uri(self.llm_config) is not None:
            self.ctx.worker_node_download_model = NodeModelDownloadable.EXCLUDE_SAFETENSORS


def llm_config(**fields: Any) -> LLMConfig:
    """An LLMConfig with load_format ray_weights.

    Args:
        fields: those of ray.serve.llm.LLMConfig. Options of the loader go into
            engine_kwargs["model_loader_extra_config"], see LoaderOptions.

    For a model in an object store it also sets the loader's option weights_uri and the callback above; the origin then
    reads the store by vLLM's runai_streamer, which must be installed.

    Raises:
        ConfigError: engine_kwargs asks for another load format, an option is unknown, or there is a callback already
            where this one is needed.
    """
    from ray.serve.llm import LLMConfig

    engine_kwargs: dict[str, Any] = dict(fields.pop("engine_kwargs", None) or {})
    if (given := engine_kwargs.setdefault("load_format", LOAD_FORMAT)) != LOAD_FORMAT:
        raise ConfigError(f"engine_kwargs has load_format {given!r}; llm_config is for {LOAD_FORMAT!r}")
    options = dict(engine_kwargs.get("model_loader_extra_config") or {})
    config = LLMConfig(engine_kwargs=engine_kwargs, **fields)
    uri = model_uri(config)
    if uri is not None:
        options.setdefault("weights_uri", uri)
        if "callback_config" in fields:
            raise ConfigError(f"a model in an object store needs the callback {CALLBACK}; let yours inherit from it")
        fields["callback_config"] = {"callback_class": CALLBACK}
    parse_options(options)
    if options:
        engine_kwargs["model_loader_extra_config"] = options
    return LLMConfig(engine_kwargs=engine_kwargs, **fields)


def model_uri(config: _LLMConfig) -> str | None:
    """The object store URI that the model comes from; None for a path or a hub."""
    source: object = config.model_loading_config
    source = _field(source, "model_source") or _field(source, "model_id")
    uri = source if isinstance(source, str) else _field(source, "bucket_uri")
    return uri if isinstance(uri, str) and not os.path.exists(uri) and is_remote_path(uri) else None


def _field(of: object, name: str) -> object:
    return of.get(name) if isinstance(of, Mapping) else getattr(of, name, None)
