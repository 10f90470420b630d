"""The answer of a comparison: what it says of who is best, of the student before training, and of what would help."""

from dataclasses import replace

from kdcli.comparison.answer import answer, deciding
from kdcli.comparison.records import Comparison, ComparisonRow
from kdcli.evaluation.records import ScoreInfo
from kdcli.statistics import Estimate, VarianceShares

RATE = ScoreInfo("rougeL", "higher", "rougeL", "")
LOSS = ScoreInfo("nll", "lower", "perplexity", "")
LENGTH = ScoreInfo("length", "neither", "length", "")


def estimate(mean, half=1.0, p=None):
    return Estimate(mean, mean - half, mean + half, 3, "seeds and examples", half / 2, p)


def row(label, value, *, difference=None, best=(), tied=(), before=None, closed=None, seeds=(0, 1, 2), score="rougeL"):
    return ComparisonRow(
        label, seeds, {score: estimate(value)}, {score: difference}, 10, 100, 1.0, 1, best=best, tied=tied,
        before={score: before}, closed={score: closed},
    )  # fmt: skip


def comparison(rows, infos=(RATE,), **more):
    return Comparison(rows[0].label, tuple(rows), infos, (), None, **more)


def test_one_that_is_ahead_of_all_wins_by_its_difference_to_the_baseline():
    rows = [
        row("fkl", 40.0, before=estimate(-2.0, p=0.01)),
        row(
            "akl", 45.0, difference=estimate(5.0, p=0.001), best=("rougeL",), tied=("rougeL",),
            before=estimate(3.0, p=0.01), closed=estimate(0.5, 0.1),
        ),
    ]  # fmt: skip
    shares = {"rougeL": VarianceShares(0.2, 0.1, 0.6, 0.1)}
    assert list(answer(comparison(rows, variance=shares))) == [
        "Best: akl, Rouge-L 45.0 ± 1.0, +5.0 ± 1.0 against fkl.",
        "Distillation, in Rouge-L: akl improved on the student before training; fkl made it worse; "
        "akl closed 50 % [40, 60] of its gap to the teacher.",
        "What would help most: more held-out rows, behind 60 % of a difference's variance.",
    ]


def test_a_baseline_that_wins_is_compared_with_the_nearest_of_the_others():
    rows = [
        row("fkl", 2.0, best=("nll",), tied=("nll",), score="nll"),
        row("rkl", 2.5, difference=Estimate(0.5, 0.2, 0.9, 3, "seeds", 0.1, 0.01), score="nll"),
        row("akl", 3.0, difference=estimate(1.0, 0.1, 0.01), score="nll"),
    ]
    first, *rest = answer(comparison(rows, (LOSS,)))
    assert first == "Best: fkl, NLL 2.0 ± 1.0, -0.50 [-0.90, -0.20] against rkl."
    assert rest == []


def test_what_is_tied_is_not_ranked_and_one_seed_ranks_no_objective():
    rows = [
        row("fkl", 40.0, tied=("rougeL",), seeds=(0,), before=estimate(0.1, p=0.6)),
        row("akl", 41.0, difference=estimate(1.0, p=0.4), best=("rougeL",), tied=("rougeL",), seeds=(0,)),
        row("rkl", 20.0, difference=estimate(-20.0, p=0.001), seeds=(0,)),
    ]
    found = list(answer(comparison(rows)))
    assert found[0] == (
        "akl and fkl do not differ significantly in Rouge-L, and are ahead of the rest (highest mean: akl, 41.0 ± "
        "1.0). One training seed ranks these models, not the objectives."
    )
    assert found[1:] == [
        "Distillation, in Rouge-L: no objective changed it significantly.",
        "What would help most: more training seeds.",
    ]


def test_the_score_that_decides_is_the_one_named_else_the_first_with_a_better_side():
    rows = [row("fkl", 40.0, best=("rougeL",), tied=("rougeL",))]
    found = comparison(rows, (LENGTH, RATE, LOSS))
    assert deciding(found) == RATE
    assert deciding(found, "nll") == LOSS
    assert next(iter(answer(found))) == "Rouge-L of fkl: 40.0 ± 1.0"
    assert list(answer(comparison(rows, (LENGTH,)))) == []


def test_of_a_score_that_nothing_tests_no_difference_is_claimed_or_denied():
    bare = Estimate(30.0, None, None, 1, "none")
    rows = [
        replace(row("fkl", 20.0, tied=("rougeL",), seeds=(0,)), scores={"rougeL": replace(bare, mean=20.0)}),
        replace(row("akl", 30.0, best=("rougeL",), tied=("rougeL",), seeds=(0,)), scores={"rougeL": bare}),
    ]
    rows = [replace(one, before={"rougeL": replace(bare, mean=3.0)}) for one in rows]
    assert list(answer(comparison(rows)))[:2] == [
        "Highest Rouge-L 30.00, of akl: no test says whether the others differ.",
        "Distillation, in Rouge-L: no test says what changed it.",
    ]
