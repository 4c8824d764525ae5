"""Which weights a local checkpoint holds, without reading all of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CONFIG_FILES = (
    "config.json",
    "params.json",
    "hf_quant_config.json",
    "quantize_config.json",
    "model.safetensors.index.json",
)
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
SAMPLE_NBYTES = 256
SAMPLES_PER_FILE = 256
"""Of a file whose tensors cannot be told apart."""
_MOST_HEADER_NBYTES = 100 << 20


def checkpoint_fingerprint(path: str | os.PathLike[str]) -> str:
    """Identify the weights under `path`, a directory or one file, as "sha256:<hex>".

    A path is no identity: people overwrite a checkpoint in place (a new fine-tune under the old name), and then an
    old replica must not hand its weights to a new one. Names, sizes and safetensors headers do not change in that
    case, and modification times differ between copies of one checkpoint. So every weights file contributes its name,
    size and header, and from the middle of every tensor a sample of 256 bytes; training or merging changes all of
    them in practice. A file that is not safetensors contributes samples spread evenly. Reading it all would cost what
    this package is there to save.

    What the samples cannot see is a change confined to a part of a tensor that they do not touch. Give such a
    checkpoint another directory.

    Raises:
        OSError: a file cannot be read.
    """
    root = Path(path)
    files = (
        [root] if root.is_file() else sorted(f for f in root.iterdir() if f.suffix in WEIGHTS_SUFFIXES and f.is_file())
    )
    h = hashlib.sha256(b"ray_weights checkpoint 1\n")
    if root.is_dir():
        for name in CONFIG_FILES:
            if (root / name).is_file():
                h.update(f"{name}\n".encode() + hashlib.sha256((root / name).read_bytes()).digest())
    # Samples are many small reads: on a network file system their latencies should overlap.
    with ThreadPoolExecutor(max_workers=8) as pool:
        for file, digest in zip(files, pool.map(_file_digest, files), strict=True):
            h.update(f"{file.name}\n".encode() + digest)
    return f"sha256:{h.hexdigest()}"


def _file_digest(file: Path) -> bytes:
    h = hashlib.sha256()
    with file.open("rb", buffering=0) as f:
        size = os.fstat(f.fileno()).st_size
        h.update(f"{size}\n".encode())
        header = _safetensors_header(f.fileno(), size) if file.suffix == ".safetensors" else None
        if header is not None:
            h.update(header)
        for offset in _sample_offsets(header, size):
            h.update(os.pread(f.fileno(), SAMPLE_NBYTES, offset))
    return h.digest()


def _sample_offsets(header: bytes | None, size: int) -> Iterator[int]:
    if header is None:
        step = max(size // SAMPLES_PER_FILE, 1)
        yield from range(0, size, step)
        return
    for name, entry in sorted(json.loads(header).items()):
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            # The middle, but so that a small tensor is read whole and none of the next.
            yield 8 + len(header) + begin + max(0, (end - begin - SAMPLE_NBYTES) // 2)


def _safetensors_header(fd: int, size: int) -> bytes | None:
    """The JSON header; None where the file is not safetensors after all (vLLM's own loader will say so)."""
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    if not 0 < length <= min(size - 8, _MOST_HEADER_NBYTES):
        return None
    header = os.pread(fd, length, 8)
    try:
        entries = json.loads(header)
        for name, entry in entries.items():
            if name != "__metadata__":
                _begin, _end = entry["data_offsets"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return header
