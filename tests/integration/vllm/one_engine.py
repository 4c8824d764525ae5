"""One vLLM engine in a process of its own: greedy tokens to a file. Run by test_engines.

python one_engine.py CHECKPOINT OUTPUT.json '{"engine": "arguments"}' [--connect]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PROMPTS = ["def f(x):", "The language reference says that a class", "import"]


def main() -> None:
    checkpoint, output, kwargs = sys.argv[1:4]
    if "--connect" in sys.argv:
        import ray

        ray.init(address="auto", log_to_driver=False)
    from vllm import LLM, SamplingParams

    llm = LLM(checkpoint, **json.loads(kwargs))
    sampling = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    answers = llm.generate(PROMPTS, sampling, use_tqdm=False)
    Path(output).write_text(json.dumps([list(a.outputs[0].token_ids) for a in answers]))


if __name__ == "__main__":
    main()
