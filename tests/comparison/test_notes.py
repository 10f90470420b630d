from dataclasses import replace

import pytest

from kdcli.comparison import conclusions
from kdcli.comparison.aggregate import pareto
from kdcli.comparison.records import ComparisonRow
from kdcli.evaluation.records import ScoreInfo
from kdcli.statistics import Detectable, Estimate, VarianceShares, difference_over_seeds, over_seeds

ROUGE = ScoreInfo("rougeL", "higher", "rougeL", "rougeL|x", "texts")
NLL = ScoreInfo("nll", "lower", "perplexity", "perplexity|x")


def row(label, rouge, nll, base=None):
    scores = {"rougeL": over_seeds(rouge), "nll": over_seeds(nll)}
    differences = {"rougeL": None, "nll": None}
    if base:
        differences = {
            "rougeL": difference_over_seeds(rouge, base[0]),
            "nll": difference_over_seeds(nll, base[1]),
        }
    return ComparisonRow(label, tuple(rouge), scores, differences, 10, 100, 1.0, 2**20)


def concluded(rows, infos, detectable=None, variance=None, fronts=None):
    return list(conclusions.conclusions(rows, "fkl", infos, detectable or {}, variance or {}, fronts or {}))


BASE = ({0: 20.0, 1: 20.4, 2: 19.9}, {0: 2.0, 1: 2.1, 2: 1.9})


def test_sure_and_unsure_differences_are_told_apart():
    better = row("akl", {0: 25.0, 1: 25.5, 2: 24.8}, {0: 2.3, 1: 1.9, 2: 1.95}, BASE)
    said = concluded([row("fkl", *BASE), better], [ROUGE, NLL], {"rougeL": Detectable(0.61, 0.4, 1.9), "nll": None})
    assert said[0] == "akl against fkl: better in Rouge-L (p < 0.05); 1 other score shows no significant difference"
    assert said[1].startswith("minimum detectable effect against fkl at 80 % power, with 3 seeds: Rouge-L 0.4 to 1.9 ")
    assert said[-1].startswith("equal budget: 10 steps and 100 response tokens each")


def test_lower_is_better_where_it_is():
    worse = row("rkl", {0: 20.1, 1: 20.3, 2: 20.0}, {0: 3.0, 1: 3.12, 2: 2.9}, BASE)
    said = concluded([row("fkl", *BASE), worse], [ROUGE, NLL])
    assert said[0].startswith("rkl against fkl: worse in NLL")


def test_nothing_sure_is_said_as_such():
    same = row("rkl", {0: 20.1, 1: 20.3, 2: 20.0}, {0: 2.0, 1: 2.12, 2: 1.89}, BASE)
    assert "rkl: no significant difference to fkl" in concluded([row("fkl", *BASE), same], [ROUGE, NLL])


def test_one_seed_comes_first():
    one = Estimate(20.0, 19.0, 21.0, 50, "examples", 0.5)
    rows = [ComparisonRow(label, (0,), {"rougeL": one}, {"rougeL": None}, 10, 100, 1.0, 1) for label in ("fkl", "rkl")]
    said = concluded(rows, [ROUGE])
    assert said[0].startswith(
        "1 training seed: no conclusion about objectives can be drawn; the intervals are over the 50"
    )
    assert not any("8 of 10" in line for line in said)


def test_best_groups_variance_and_fronts_are_said():
    one, other = row("fkl", *BASE), row("akl", *BASE)
    rows = [replace(one, tied=("rougeL",)), replace(other, best=("rougeL", "nll"), tied=("rougeL", "nll"))]
    said = concluded(
        rows,
        [ROUGE, NLL],
        variance={"rougeL": VarianceShares(0.61, 0.1, 0.2, 0.09), "nll": VarianceShares(None, None, 0.7, 0.3)},
        fronts={"rougeL": {"flops": ("fkl", "akl"), "seconds": ("akl",)}},
    )
    assert "best, and not significantly different from it: Rouge-L: akl, fkl; NLL: akl" in said
    assert any(line.endswith("Rouge-L 61/10/20/9, NLL ?/?/70/30") for line in said)
    assert "not beaten by anything with fewer FLOPs (Pareto front): Rouge-L: fkl, akl" in said
    assert not any("seconds" in line for line in said)


def test_unequal_budgets_are_said():
    rows = [row("fkl", *BASE), ComparisonRow("rkl", (0, 1, 2), {}, {}, 20, 200, 1.0, 1)]
    assert "budgets differ" in concluded(rows, [ROUGE])[-1]


@pytest.mark.parametrize(
    ("seeds", "more"), [((0,), (0, 1, 2)), ((7,), (7, 0, 1)), ((0, 1), (0, 1, 2)), ((0, 1, 2), (0, 1, 2, 3, 4))]
)
def test_the_next_command_has_more_seeds(seeds, more):
    assert conclusions.more_seeds(seeds) == more
    text = ",".join(map(str, more))
    assert list(conclusions.SuggestedCommand("kd compare -c study.yaml", seeds).sentences([])) == [
        f"next: kd compare -c study.yaml --seeds {text}"
    ]


def costed(**spent):
    """Return three lines that are better in both scores the dearer they are, but the last: it is dear and bad."""
    values = {"small": (20.0, 3.0), "large": (25.0, 2.0), "bad": (19.0, 3.5)}
    return [
        replace(row(label, {0: rouge, 1: rouge + 1}, {0: nll, 1: nll + 1}), flops=flops, parameters=size)
        for (label, (rouge, nll)), (flops, size) in zip(values.items(), zip(*spent.values(), strict=True), strict=True)
    ]


def test_fronts_are_of_the_lines_that_no_other_beats_in_quality_and_cost():
    rows = costed(flops=(10, 20, 30), parameters=(7, 7, 7))
    neither = replace(NLL, better="neither")
    assert pareto(rows, [ROUGE]) == {"rougeL": {"flops": ("small", "large")}}
    assert pareto(rows, [NLL, ROUGE])["nll"] == {"flops": ("small", "large")}
    assert pareto(rows, [neither]) == {}


@pytest.mark.parametrize("unknown", [None, 0])
def test_a_cost_that_one_line_does_not_know_has_no_front(unknown):
    rows = costed(flops=(10, 20, unknown), parameters=(1, 2, 2))
    assert pareto(rows, [ROUGE]) == {"rougeL": {"parameters": ("small", "large")}}
