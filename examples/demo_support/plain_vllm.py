"""Greedy completions from vLLM alone: its own loader, no Ray, no ray_weights. Run as a process of its own.

python -m demo_support.plain_vllm CHECKPOINT OUTPUT.json [--tensor-parallel-size N]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from demo_support.completions import MAX_TOKENS, PROMPTS, Completion, Completions
from demo_support.processes import run_to_completion

EXAMPLES = Path(__file__).resolve().parents[1]
REPOSITORY = EXAMPLES.parent

# The same engine as in serve_apps/llm-cpu.yaml: other settings could round differently.
ENGINE_KWARGS = {"dtype": "float32", "max_model_len": 256, "enforce_eager": True}
ENGINE_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process less to start: ten seconds on a small machine
    "VLLM_CACHE_ROOT": str(REPOSITORY / ".cache" / "vllm"),
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def ask_plain_vllm(
    checkpoint: Path, *, tensor_parallel_size: int = 1, timeout_s: float = 300.0
) -> tuple[Completion, ...]:
    """Runs this module in a new process, which is gone when this returns, and returns what it wrote."""
    with tempfile.TemporaryDirectory(prefix="ray-weights-plain-") as directory:
        output = Path(directory) / "completions.json"
        command = [sys.executable, "-m", "demo_support.plain_vllm", str(checkpoint), str(output)]
        command += ["--tensor-parallel-size", str(tensor_parallel_size)]
        env = {**os.environ, **ENGINE_ENV, "TMPDIR": directory}
        run_to_completion(command, env=env, cwd=EXAMPLES, timeout_s=timeout_s)
        return Completions.model_validate_json(output.read_text()).completions


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    arguments = parser.parse_args()

    from vllm import LLM, SamplingParams

    llm = LLM(model=str(arguments.checkpoint), tensor_parallel_size=arguments.tensor_parallel_size, **ENGINE_KWARGS)
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    completions = []
    for prompt in PROMPTS:  # one at a time, as the replicas are asked
        answer = llm.generate([prompt], sampling, use_tqdm=False)[0].outputs[0]
        completions.append(Completion(prompt=prompt, token_ids=tuple(answer.token_ids), text=answer.text))
    arguments.output.write_text(Completions(completions=tuple(completions)).model_dump_json())


if __name__ == "__main__":
    _main()
