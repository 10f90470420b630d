"""How often intervals and tests of a comparison are right, by simulation: ``python benchmarks/coverage.py [TABLES]``.

Scores of contenders with known means are drawn as in the tests (``tests/simulated.py``), and what the intervals and
tests say is counted. What is printed is Markdown; docs/compare.md holds it.
"""

import itertools
import sys
from functools import partial
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import simulated
from kdcli.statistics import detectable, split_difference, tied_for_best
from kdcli.statistics.paired import of_studies
from kdcli.statistics.variance_components import Parts

SHARES = (0.0, 0.1, 0.3, 0.5, 0.8, 0.95, 1.0)
DESIGNS = ((2, 100), (3, 100), (5, 100), (2, 500), (3, 500))
NAMES = [f"{seeds} × {examples}" for seeds, examples in DESIGNS]
SEEDS_MATTER = partial(simulated.smooth, share=0.9, alone=True)
KINDS = {
    "normal, 30 % from seeds": simulated.smooth,
    "normal, seeds paired": partial(simulated.smooth, share=0.9, shared=0.9),
    "skewed examples (exponential)": partial(simulated.smooth, of_example="gamma"),
    "heavy-tailed examples (t, 3)": partial(simulated.smooth, of_example="t3"),
    "examples of unequal length": simulated.tokens,
    "0/1, 1 % each": partial(simulated.hits, rate=0.01),
    "0/1, 4 % and 10 %": partial(simulated.hits, rate=(0.04, 0.10)),
    "0/1, 90 % and 97 %": partial(simulated.hits, rate=(0.90, 0.97)),
    "0/1, 4 % and 10 %, easy and hard examples": partial(simulated.hits, rate=(0.04, 0.10), clump=0.3),
    "0/1, 4 % and 10 %, good and bad seeds": partial(simulated.hits, rate=(0.04, 0.10), seed_effect=0.5),
    "five values, 10 % and 15 %": partial(simulated.hits, rate=(0.1, 0.15), steps=4, clump=2.0, seed_effect=0.3),
    "heavy-tailed seeds (t, 3)": partial(SEEDS_MATTER, of_seed="t3"),
    "*skewed seeds (exponential)*": partial(SEEDS_MATTER, of_seed="gamma"),
    "*one seed in ten fails, by 10 deviations*": partial(SEEDS_MATTER, of_seed="failing"),
}
EQUAL = {
    "normal, no seed effect": partial(simulated.smooth, of_seed="none"),
    "normal, 30 % from seeds": simulated.smooth,
    "0/1, 1 %": partial(simulated.hits, rate=0.01),
    "0/1, 1 %, good and bad seeds": partial(simulated.hits, rate=0.01, seed_effect=0.5),
    "0/1, 4 %": partial(simulated.hits, rate=0.04),
    "0/1, 4 %, easy and hard examples": partial(simulated.hits, rate=0.04, clump=0.3),
    "0/1, 30 %": partial(simulated.hits, rate=0.3),
}


def halves(table):
    """Half-widths of four 95 % intervals: ours, pooled cells, examples alone, seeds alone."""
    seeds, examples = table.shape[-2:]
    pooled = table.reshape(len(table), -1)
    return (
        split_difference(table).half_width(0.05),
        1.96 * pooled.std(1, ddof=1) / np.sqrt(pooled.shape[1]),
        stdtrit(examples - 1, 0.975) * table.mean(1).std(1, ddof=1) / np.sqrt(examples),
        stdtrit(seeds - 1, 0.975) * table.mean(2).std(1, ddof=1) / np.sqrt(seeds),
    )


def normal(draw, trials, seeds, examples, share, rest):
    table = draw.normal(0, np.sqrt(share * seeds), (trials, seeds, 1))
    table = table + draw.normal(0, np.sqrt((1 - share) * examples), (trials, 1, examples))
    return table + draw.normal(0, rest * np.sqrt(examples), (trials, seeds, examples))


def usual(seeds, trials):
    """Lowest and highest coverage of each interval over the settings, and of errors at the 1 % level."""
    found = []
    for examples, share, rest in itertools.product((50, 200, 500), SHARES, (0.5, 2.0)):
        draw, inside, small = np.random.default_rng(1), np.zeros(4), 0
        for count in simulated.blocks(trials, 1, seeds, examples):
            table = normal(draw, count, seeds, examples, share, rest)
            mean = np.abs(table.mean((1, 2)))
            inside += [(mean <= half).sum() for half in halves(table)]
            small += int((mean > split_difference(table).half_width(0.01)).sum())
        found.append([*inside / trials, small / trials])
    return [f"{low:.3f} to {high:.3f}" for low, high in zip(np.min(found, 0), np.max(found, 0), strict=True)]


def best_group(make, seeds, examples, trials):
    """How often a given one of six equal contenders, and how often all six, are in the group tied for best."""
    draw, found = np.random.default_rng(3), np.zeros(2)
    for count in simulated.blocks(trials, 6, seeds, examples):
        drawn = make(draw, count, 6, seeds, examples)
        for table, scores in zip(drawn.values, drawn.scores, strict=True):
            best = int(scores.argmax())
            others = [line for line in range(6) if line != best]
            parts = split_difference(table[best] - table[others], drawn.reach)
            p_values = parts.p_value(scores[best] - scores[others]).tolist()
            group = tied_for_best(dict(zip(map(str, others), p_values, strict=True)), str(best))
            found += ["0" in group, len(group) == 6]
    return found / trials


def power(seeds, examples, share, trials):
    """Power at the difference solved from the true variance, for 1, 5 and 9 tests; how often a range holds it."""
    rest = 0.25 / seeds
    variances = (share + rest, 1.0 - share, rest, (1.0 - share + rest) * (1.0 + 6.0 / examples))
    true = Parts(*map(np.array, variances), (seeds, examples))
    drawn = simulated.smooth(np.random.default_rng(4), trials, 1, seeds, examples, share=share)
    parts, scores = split_difference(drawn.values[:, 0]), drawn.scores[:, 0]
    sizes = {tests: float(detectable(true, 0.05 / tests)) for tests in (1, 5, 9)}
    found = [float(np.mean(np.abs(scores + size) > parts.half_width(0.05 / n))) for n, size in sizes.items()]
    ranges = [of_studies(one, 1, 0.05) for one in some(parts, min(trials, 300))]
    held = np.mean([one.low <= sizes[1] <= one.high for one in ranges])
    return [*found, held, np.mean([one.size < sizes[1] for one in ranges])]


def some(parts, count):
    for index in range(count):
        yield Parts(
            *(np.asarray(each[index]) for each in (parts.seeds, parts.examples, parts.rest, parts.fixed)), parts.shape
        )


def table(heads, lines):
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)], *lines]
    print("\n".join(f"| {' | '.join(map(str, row))} |" for row in rows), end="\n\n", flush=True)


def percent(value):
    return f"{100 * value:.1f}"


def against_what_is_usual(trials):
    heads = ["seeds", "`kd`", "all cells pooled", "examples alone", "seeds alone", "false at the 1 % level"]
    table(heads, [[seeds, *usual(seeds, trials)] for seeds in (2, 3, 5)])


def of_all_kinds(trials):
    lines = []
    for name, make in KINDS.items():
        found = [simulated.coverage(make, *design, trials) for design in DESIGNS]
        lines.append([name, *(f"{percent(of_mean)} / {percent(of_change)}" for of_mean, of_change in found)])
    table(["scores", *NAMES], lines)


def of_equal_contenders(trials):
    lines = []
    for name, make in EQUAL.items():
        lines.append([name, *(percent(simulated.false_claims(make, *design, trials)) for design in DESIGNS)])
    table(["six equal contenders", *NAMES], lines)


def of_the_best(trials):
    lines = []
    for name in ("normal, 30 % from seeds", "0/1, 4 %"):
        found = [best_group(EQUAL[name], *design, trials // 5) for design in DESIGNS[:3]]
        lines.append([name, *(f"{percent(one)} / {percent(all_)}" for one, all_ in found)])
    table(["in the group tied for best: one, all six", *NAMES[:3]], lines)


def of_detectable_differences(trials):
    lines = []
    for seeds, examples, share in ((2, 100, 0.3), (3, 50, 0.0), (3, 100, 0.8), (5, 200, 0.3)):
        *found, held, below = power(seeds, examples, share, trials)
        design = f"{seeds} × {examples}, {100 * share:.0f} % from seeds"
        lines.append([design, *map(percent, found), percent(held), percent(below)])
    table(["seeds × examples", "1 test", "5 tests", "9 tests", "in the range", "middle too small"], lines)


def main():
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    against_what_is_usual(trials)
    of_all_kinds(trials)
    of_equal_contenders(trials)
    of_the_best(trials)
    of_detectable_differences(trials)


if __name__ == "__main__":
    main()
