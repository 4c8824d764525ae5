"""A small but real checkpoint: Llama, random weights from a fixed seed, its own tokenizer, several shards.

Made once by transformers and kept in a cache directory, so nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

DEFAULT_CACHE = Path(__file__).resolve().parents[2] / ".cache" / "checkpoints"

CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


@dataclass(frozen=True, slots=True)
class CheckpointSpec:
    """Everything that decides the bytes of a checkpoint. The directory's name carries its digest."""

    name: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int  # even, and so are kv_heads: tensor_parallel_size=2 splits them
    kv_heads: int
    vocab_size: int
    shard_bytes: int
    tied: bool = False
    seed: int = 20
    # Wide enough that the layers outweigh the token's own embedding. At transformers' 0.02 they do not: the next
    # token then hardly depends on the layers, and wrong weights would still give the right answer.
    init_std: float = 0.06

    @property
    def directory_name(self) -> str:
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.name}-{'tied' if self.tied else 'untied'}-{digest}"


DEMO = CheckpointSpec(
    name="llama-300mb",
    hidden_size=768,
    intermediate_size=2048,
    layers=10,
    heads=12,
    kv_heads=12,
    vocab_size=4096,
    shard_bytes=64_000_000,
)
"""About 310 MB of float32 in five or six shards."""

TINY = CheckpointSpec(
    name="llama-tiny",
    hidden_size=256,
    intermediate_size=512,
    layers=3,
    heads=4,
    kv_heads=2,
    vocab_size=1024,
    shard_bytes=4_000_000,
)
"""About 9 MB of float32 in three shards: for tests."""

TINY_TIED = replace(TINY, tied=True)


def ensure_checkpoint(spec: CheckpointSpec = DEMO, cache: Path = DEFAULT_CACHE) -> Path:
    """The directory of the checkpoint, made now if it is not there yet.

    It is written beside its final place and renamed, so a directory of that name is always a whole checkpoint, also
    when two processes make it at the same time or one is killed at it.
    """
    final = cache / spec.directory_name
    if final.is_dir():
        return final
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{spec.directory_name}-", dir=cache))
    try:
        _write(spec, unfinished)
        os.chmod(unfinished, 0o755)
        try:
            os.rename(unfinished, final)
        except OSError:
            if not final.is_dir():  # else: another process made the same one first
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return final


def size_in_bytes(checkpoint: Path) -> int:
    return sum(shard.stat().st_size for shard in checkpoint.glob("*.safetensors"))


def _write(spec: CheckpointSpec, directory: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = LlamaConfig(
        vocab_size=_write_tokenizer(spec, directory),
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=spec.tied,
        initializer_range=spec.init_std,
        bos_token_id=0,
        eos_token_id=1,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(directory, max_shard_size=spec.shard_bytes)


def _write_tokenizer(spec: CheckpointSpec, directory: Path) -> int:
    """Trains a byte-level BPE on the language reference that comes with Python; returns its vocabulary size."""
    from pydoc_data.topics import topics

    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    special = ["<bos>", "<eos>", "<pad>"]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        (topics[name] for name in sorted(topics)),
        vocab_size=spec.vocab_size,
        special_tokens=special,
        show_progress=False,
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[2],
        model_max_length=1024,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    size = len(tokenizer)
    if size != spec.vocab_size:
        raise RuntimeError(f"the tokenizer has {size} tokens, {spec.vocab_size} wanted: choose a smaller vocab_size")
    return size
