"""What went wrong in another actor, for a person to read."""

from __future__ import annotations

from ray.exceptions import RayTaskError


def what_happened(error: BaseException) -> str:
    """One line, without the traceback that Ray appends."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        return f"{type(error.cause).__name__}: {first_line(error.cause)}"
    return first_line(error)


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
