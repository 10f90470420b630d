"""Courses of a number over training, from a start to an end, exact at both."""

import math
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

Course: TypeAlias = Literal["linear", "cosine", "exponential", "step"]

Since = Annotated[float, Field(ge=0, lt=1, description="share of the run at which the course leaves the start")]
Until = Annotated[float, Field(gt=0, le=1, description="share of the run at which the course reaches the end")]
Kind = Annotated[Course, Field(description="way from start to end; a step jumps at `until`")]


def on_course(course: Course, start: float, end: float, share: float) -> float:
    """Return where a course stands after a share of its way, from 0 to 1.

    linear ``(1-x) start + x end``; cosine the same with ``x = (1 - cos pi x) / 2``; exponential
    ``start^(1-x) end^x``, for numbers above 0; step ``start`` before the end of the way.

    >>> [on_course("exponential", 4.0, 1.0, share) for share in (0.0, 0.5, 1.0)]
    [4.0, 2.0, 1.0]
    """
    if course == "step":
        return end if share >= 1.0 else start
    if course == "exponential":
        return start ** (1.0 - share) * end**share
    if course == "cosine":
        share = 0.5 * (1.0 - math.cos(math.pi * share))
    return (1.0 - share) * start + share * end


def share_of_way(progress: float, since: float, until: float) -> float:
    """Return the share of the way done at a share of the run, from 0 to 1.

    >>> share_of_way(0.3, 0.2, 0.4), share_of_way(0.1, 0.2, 0.4), share_of_way(1.0, 0.2, 0.4)
    (0.4999999999999999, 0.0, 1.0)
    """
    if progress >= until:
        return 1.0
    return max(0.0, (progress - since) / (until - since))


def check_way(course: Course, start: float, end: float, since: float, until: float) -> None:
    """Refuse a course that leads nowhere.

    Raises:
        ValueError: in words for the user.
    """
    if since >= until:
        raise ValueError(f"since must lie before until, got {since:g} and {until:g}")
    if course == "exponential" and min(start, end) <= 0:
        raise ValueError(f"an exponential course never leaves or reaches 0, got {start:g} to {end:g}; take linear")
