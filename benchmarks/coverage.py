"""How often the intervals and tests of a comparison are right, by simulation: ``python benchmarks/coverage.py``.

Tables of paired differences ``[seeds, examples]`` are drawn with a known mean. The variance of their
mean is due to seeds by a given share; the rest of the cells adds the same amount again or four times as much.
"""

import itertools
import sys

import numpy as np
from scipy.special import stdtrit

from kdcli.statistics import holm, split, tied_for_best

SHARES = (0.0, 0.1, 0.3, 0.5, 0.8, 0.95, 1.0)
BLOCK = 2_000_000


def draw(generator, trials, seeds, examples, share, rest):
    of_seed = generator.normal(0, np.sqrt(share * seeds), (trials, seeds, 1))
    of_example = generator.normal(0, np.sqrt((1 - share) * examples), (trials, 1, examples))
    return of_seed + of_example + generator.normal(0, rest * np.sqrt(examples), (trials, seeds, examples))


def halves(table):
    """Half-widths of four 95 % intervals: ours, pooled cells, examples alone, seeds alone."""
    seeds, examples = table.shape[-2:]
    pooled = table.reshape(len(table), -1)
    return (
        split(table).half_width(0.05),
        1.96 * pooled.std(1, ddof=1) / np.sqrt(pooled.shape[1]),
        stdtrit(examples - 1, 0.975) * table.mean(1).std(1, ddof=1) / np.sqrt(examples),
        stdtrit(seeds - 1, 0.975) * table.mean(2).std(1, ddof=1) / np.sqrt(seeds),
    )


def coverage(seeds, examples, share, rest, trials):
    generator, inside, small, done = np.random.default_rng(1), np.zeros(4), 0, 0
    while done < trials:
        count = min(trials - done, max(1, BLOCK // (seeds * examples)))
        table = draw(generator, count, seeds, examples, share, rest)
        mean = np.abs(table.mean((1, 2)))
        inside += [(mean <= half).sum() for half in halves(table)]
        small += int((mean > split(table).half_width(0.01)).sum())
        done += count
    return (*inside / trials, small / trials)


def families(seeds, examples, seed_effect, trials):
    """Six equal contenders: any false claim against the baseline, the best kept, all six kept."""
    generator, found = np.random.default_rng(2), np.zeros(3)
    for _ in range(trials):
        table = seed_effect * generator.normal(size=(6, seeds, 1)) + generator.normal(size=(6, seeds, examples))
        to_base = table[1:] - table[0]
        best = int(table.mean((1, 2)).argmax())
        to_best = np.delete(table[best] - table, best, 0)
        p_base, p_best = (split(one).p_value(one.mean((1, 2))).tolist() for one in (to_base, to_best))
        names = [str(index) for index in range(6) if index != best]
        group = tied_for_best(dict(zip(names, p_best, strict=True)), str(best))
        claims = [value for value in holm(p_base) if value is not None and value < 0.05]
        found += [bool(claims), "0" in group, len(group) == 6]
    return tuple(found / trials)


def main():
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    print("seeds examples seed-share rest |  ours  pooled examples-alone seeds-alone | p<.01")
    extremes = {}
    for seeds, examples, share, rest in itertools.product((2, 3, 5), (50, 200, 500), SHARES, (0.5, 2.0)):
        found = coverage(seeds, examples, share, rest, trials)
        extremes.setdefault(seeds, []).append(found)
        shown = "  ".join(f"{value:.4f}" for value in found)
        print(f"{seeds:5} {examples:8} {share:10} {rest:4} | {shown}", flush=True)
    for seeds, found in extremes.items():
        low, high = np.min(found, axis=0), np.max(found, axis=0)
        shown = ", ".join(f"{a:.3f} to {b:.3f}" for a, b in zip(low, high, strict=True))
        print(f"{seeds} seeds: {shown}")
    for seeds, examples, effect in ((3, 200, 0.1), (5, 200, 0.1), (3, 50, 1.0)):
        shown = ", ".join(f"{value:.3f}" for value in families(seeds, examples, effect, trials // 5))
        print(f"six equal contenders, {seeds} seeds, {examples} examples, seed effect {effect}: {shown}")


if __name__ == "__main__":
    main()
