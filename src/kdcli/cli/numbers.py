"""Writes numbers for people: sizes and times; digits are cut in ``kdcli.digits``."""

from kdcli.digits import decimals, plain, with_interval

__all__ = ["decimals", "duration", "plain", "size", "with_interval"]


def size(count: int) -> str:
    """Return a number of bytes.

    >>> size(512 * 2**20), size(3 * 2**30)
    ('512 MiB', '3.0 GiB')
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration(seconds: int | float) -> str:
    """Return a length of time.

    >>> duration(4.21), duration(75), duration(4000)
    ('4.2 s', '1 min 15 s', '1 h 07 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min"
