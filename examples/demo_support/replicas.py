"""Asks every replica of a Serve deployment, not just the one that the router would choose."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from demo_support.completions import PROMPTS, Completion, request_body


@dataclass(frozen=True, slots=True)
class ReplicaAnswers:
    replica_id: str
    node_ip: str
    node_id: str
    completions: tuple[Completion, ...]


def import_what_asking_needs() -> None:
    """Takes several seconds of one core, best spent while the replicas start."""
    logging.disable(logging.WARNING)  # vLLM comes in with it, and would tell on the terminal that there is no GPU
    try:
        import ray.serve.llm.openai_api_models  # noqa: F401
    finally:
        logging.disable(logging.NOTSET)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)


def ask_every_replica(
    *, app: str, deployment: str, model_id: str, replicas: int, timeout_s: float = 120.0
) -> list[ReplicaAnswers]:
    """Greedy completions of the same prompts from each of the replicas. Needs this process to be a driver."""

    async def ask() -> list[ReplicaAnswers]:
        async with asyncio.timeout(timeout_s):
            return await _ask_every_replica(app, deployment, model_id, replicas)

    try:
        return asyncio.run(ask())
    except TimeoutError as error:
        raise TimeoutError(
            f"not all {replicas} replicas of {deployment} had answered after {timeout_s:.0f} s"
        ) from error


async def _ask_every_replica(app: str, deployment: str, model_id: str, replicas: int) -> list[ReplicaAnswers]:
    import_what_asking_needs()
    from ray import serve
    from ray.serve.llm.openai_api_models import CompletionRequest

    handle = serve.get_deployment_handle(deployment, app).options(method_name="completions", stream=True)
    places: dict[str, tuple[str, str]] = {}
    answers: dict[str, list[Completion]] = {}
    while len(answers) < replicas or any(len(given) < len(PROMPTS) for given in answers.values()):
        # The router picks by chance, and a pick is good for one request. One that is not needed is given back.
        async with handle.choose_replica() as chosen:
            places[chosen.replica_id] = (chosen.node_ip, chosen.node_id)
            given = answers.setdefault(chosen.replica_id, [])
            if len(given) < len(PROMPTS):
                prompt = PROMPTS[len(given)]
                async for response in handle.dispatch(chosen, CompletionRequest(**request_body(prompt, model_id))):
                    given.append(_read(prompt, response))
        await asyncio.sleep(0.01)
    return [ReplicaAnswers(replica, *places[replica], tuple(answers[replica])) for replica in sorted(answers)]


def _read(prompt: str, response: object) -> Completion:
    choices = getattr(response, "choices", None)
    if not choices:
        raise RuntimeError(f"a replica refused the prompt {prompt!r}: {response}")
    return Completion(prompt=prompt, token_ids=tuple(choices[0].token_ids), text=choices[0].text)
