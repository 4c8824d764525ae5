"""What is asked of every replica and of plain vLLM, and what comes back: the two must agree to the token."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

PROMPTS = (
    "The import statement",
    "A class definition is",
    "Once upon a time",
    "When an exception is raised in a generator,",
)
MAX_TOKENS = 16


class Completion(BaseModel):
    """The greedy continuation of one prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    token_ids: tuple[int, ...]
    text: str


class Completions(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    completions: tuple[Completion, ...]


def request_body(prompt: str, model_id: str) -> dict[str, object]:
    """The body for /v1/completions. ignore_eos, because an untrained model may well say its end-of-text token."""
    return {
        "model": model_id,
        "prompt": prompt,
        "max_tokens": MAX_TOKENS,
        "temperature": 0.0,
        "ignore_eos": True,
        "return_token_ids": True,
    }


def differences(expected: tuple[Completion, ...], got: tuple[Completion, ...]) -> list[str]:
    """One line for each prompt whose tokens differ."""
    lines = []
    for want, have in zip(expected, got, strict=True):
        if want != have:
            lines.append(
                f"{want.prompt!r}: plain vLLM said {list(want.token_ids)}, this replica {list(have.token_ids)}"
            )
    return lines


def why_too_dull(completions: tuple[Completion, ...]) -> str | None:
    """The reason why these completions would prove nothing if they agreed, or None where they are varied enough."""
    for completion in completions:
        if len(set(completion.token_ids)) < MAX_TOKENS // 2:
            return f"{completion.prompt!r} goes on with few different tokens: {list(completion.token_ids)}"
    if len({completion.token_ids for completion in completions}) < len(completions):
        return "two prompts go on in the same way"
    return None
