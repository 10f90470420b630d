"""Scripts that write no spaces between words, in which counting what stands between spaces counts no words."""

import re
from collections.abc import Callable, Iterable

UNSPACED_SHARE = 0.05
"""Above this share of letters in such scripts, a number that follows from spaces carries a note."""

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff]"
)
"""Thai, Lao, Tibetan, Burmese, Khmer, Japanese syllables, Chinese characters."""


def unspaced_share(texts: Iterable[str]) -> float:
    """Return which share of the letters and digits belong to scripts without spaces between words.

    >>> unspaced_share(["ab 你好"]), unspaced_share(["مرحبا بالعالم"])
    (0.5, 0.0)
    """
    letters = unspaced = 0
    for text in texts:
        letters += sum(map(str.isalnum, text))
        unspaced += 0 if text.isascii() else sum(map(str.isalnum, _UNSPACED.findall(text)))
    return unspaced / max(letters, 1)


def unspaced_note(names: Iterable[str], texts: Iterable[str]) -> str | None:
    """Return the warning for metrics that split texts at spaces; None where they may.

    Args:
        names: the metrics.
        texts: answers and references.

    >>> unspaced_note(["repetition"], ["你好你好"]).partition(";")[0]
    '100% of the letters are of scripts without spaces between words'
    """
    listed, share = list(names), unspaced_share(texts)
    if not listed or share <= UNSPACED_SHARE:
        return None
    return (
        f"{share:.0%} of the letters are of scripts without spaces between words; "
        f"{', '.join(listed)} split at spaces: do not compare or trust these numbers"
    )


def length_unit(texts: Iterable[str]) -> tuple[str, Callable[[str], int]]:
    """Return the unit in which texts can be measured, and what measures one: words, or characters without spaces.

    >>> unit, length = length_unit(["你好世界"])
    >>> unit, length("你好。")
    ('characters', 2)
    """
    if unspaced_share(texts) > UNSPACED_SHARE:
        return "characters", lambda text: sum(map(str.isalnum, text))
    return "words", lambda text: len(text.split())
