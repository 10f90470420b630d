"""Rouge-L on many pairs: ours against rouge-score's own scorer with its stemmer, in one run.

    python benchmarks/rouge.py --pairs 10000 --tokens 256

Both sides score the same pairs, one answer and one reference each. Every F-measure is compared to the
last bit. The last lines split ours into tokens (with and without the memory of words seen) and LCS.
"""

import argparse
import random
import time

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from kdcli.metrics.rouge import RougeL, RougeTokens, f_measure

SYLLABLES = ("an", "ber", "cal", "dor", "en", "fin", "gra", "hol", "in", "jus", "kel", "lam", "mor", "nat", "ol", "per")
ENDINGS = ("", "", "s", "ed", "ing", "ly", "ation", "ness", "able", "er")


def vocabulary(size: int, draw: random.Random) -> list[str]:
    """Made-up words of one to three syllables with English endings."""
    words: set[str] = set()
    while len(words) < size:
        stem = "".join(draw.choices(SYLLABLES, k=draw.randint(1, 3)))
        words.add(stem + draw.choice(ENDINGS))
    return sorted(words)


def pairs(count: int, tokens: int, seed: int) -> list[tuple[str, str]]:
    """Texts whose words follow Zipf's law, as those of a language do; a third of each answer is its reference's."""
    draw = random.Random(seed)
    words = vocabulary(20_000, draw)
    weights = [1.0 / rank for rank in range(1, len(words) + 1)]
    made = []
    for _ in range(count):
        reference = draw.choices(words, weights, k=tokens)
        answer = [
            own if draw.random() < 1 / 3 else other
            for own, other in zip(reference, draw.choices(words, weights, k=tokens), strict=True)
        ]
        made.append((" ".join(answer), " ".join(reference)))
    return made


def timed(what, *arguments):
    start = time.perf_counter()
    result = what(*arguments)
    return result, time.perf_counter() - start


def theirs(texts):
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return [scorer.score(reference, answer)["rougeL"].fmeasure for answer, reference in texts]


def ours(texts):
    values = RougeL().values([[answer] for answer, _ in texts], [[reference] for _, reference in texts])
    return values[:, 0].tolist()


def tokens_of(texts):
    tokens = RougeTokens()
    return [(tokens(answer), tokens(reference)) for answer, reference in texts]


def tokens_afresh(texts):
    return [(RougeTokens()(answer), RougeTokens()(reference)) for answer, reference in texts]


def their_tokens_of(texts):
    tokens = DefaultTokenizer(use_stemmer=True)
    return [(tokens.tokenize(answer), tokens.tokenize(reference)) for answer, reference in texts]


def lcs_of(numbers):
    return [f_measure(*RougeL.overlap(answer, reference)) for answer, reference in numbers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    texts = pairs(chosen.pairs, chosen.tokens, chosen.seed)
    fast, fast_seconds = timed(ours, texts)
    slow, slow_seconds = timed(theirs, texts)
    unequal = sum(one != other for one, other in zip(fast, slow, strict=True))
    numbers, tokens_seconds = timed(tokens_of, texts)
    _, lcs_seconds = timed(lcs_of, numbers)
    sample = texts[: max(1, len(texts) // 20)]
    scale = len(texts) / len(sample)
    afresh = timed(tokens_afresh, sample)[1] * scale
    their_tokens = timed(their_tokens_of, sample)[1] * scale
    print(f"{chosen.pairs:,} pairs of {chosen.tokens} tokens, mean Rouge-L {100 * sum(slow) / len(slow):.4f}")
    print(f"{unequal} of {len(fast):,} pairs differ in any bit")
    print(f"rouge-score {slow_seconds:8.2f} s: tokens and stems about {their_tokens:.2f} s, the rest LCS")
    print(f"kd          {fast_seconds:8.2f} s: {slow_seconds / fast_seconds:.1f} times as fast")
    print(f"            nothing remembered: {slow_seconds / (afresh + lcs_seconds):.1f} times as fast")
    print(f"  tokens and stems, words remembered  {tokens_seconds:8.2f} s (nothing remembered: about {afresh:.2f} s)")
    print(f"  LCS and F-measure                   {lcs_seconds:8.2f} s")


if __name__ == "__main__":
    main()
