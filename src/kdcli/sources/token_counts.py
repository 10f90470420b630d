"""Counts forward passes and tokens of generation."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields


@dataclass(frozen=True)
class TokenCounts:
    """Tokens that went through models so that sequences were written; every pass goes forward only.

    A prompt of P tokens and an answer of n are P + n - 1 tokens through the trunk, since the last one is not read, and
    n through the head.

    Args:
        student_read: tokens through the student's trunk.
        student_said: tokens through its head.
        teacher_read: tokens through the teacher's trunk.
        teacher_said: tokens through its head.

    >>> TokenCounts.of_answers("student", [(5, 3), (2, 1)])
    TokenCounts(student_read=9, student_said=4, teacher_read=0, teacher_said=0)
    """

    student_read: int = 0
    student_said: int = 0
    teacher_read: int = 0
    teacher_said: int = 0

    def __add__(self, other: "TokenCounts") -> "TokenCounts":
        return TokenCounts(*(mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)))

    @property
    def counts(self) -> tuple[int, ...]:
        """The four numbers, in their order."""
        return tuple(asdict(self).values())

    @classmethod
    def of(cls, who: str, read: int, said: int) -> "TokenCounts":
        """Return the counts of one model.

        Args:
            who: "student" or "teacher".
            read: tokens through its trunk.
            said: tokens through its head.
        """
        return cls(**{f"{who}_read": read, f"{who}_said": said})

    @classmethod
    def of_answers(cls, who: str, lengths: Iterable[tuple[int, int]]) -> "TokenCounts":
        """Return what it takes to answer prompts once each, or to read prompts with their answers once.

        Args:
            who: "student" or "teacher".
            lengths: tokens of each prompt and of its answer, end token included.
        """
        listed = list(lengths)
        said = sum(answer for _, answer in listed)
        return cls.of(who, sum(prompt for prompt, _ in listed) + said - len(listed), said)

    @classmethod
    def of_counts(cls, counts: Mapping[str, int]) -> "TokenCounts":
        """Return the effort that :func:`dataclasses.asdict` made a table of."""
        return cls(**{one.name: counts.get(one.name, 0) for one in fields(cls)})


@dataclass(frozen=True)
class Made:
    """What was written before the first step; the same in every process.

    Args:
        tokens: written in all, end tokens included.
        effort: what that took, whoever did it and whenever.
        fresh: tokens that this process wrote, the others were there.
        fresh_effort: what that took.
        seconds: how long.
    """

    tokens: int = 0
    effort: TokenCounts = field(default_factory=TokenCounts)
    fresh: int = 0
    fresh_effort: TokenCounts = field(default_factory=TokenCounts)
    seconds: float = 0.0
