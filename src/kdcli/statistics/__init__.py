"""Means and differences with honest intervals: over training seeds, over examples, over both.

Two questions are kept apart. *These trained models*: seeds are held fixed, examples are drawn; BCa
bootstrap and permutation test, paired by example. *The objectives*: seeds and examples are drawn;
variance components with few degrees of freedom, paired by both. One seed answers only the first.
"""

from kdcli.statistics.bootstrap import counted, over_examples
from kdcli.statistics.estimate import (
    CONFIDENCE,
    LEVEL,
    POWER,
    Additive,
    Array,
    Estimate,
    difference_over_seeds,
    over_seeds,
)
from kdcli.statistics.gap import share_of_gap
from kdcli.statistics.multiple_comparisons import holm, pareto_front, tied_for_best
from kdcli.statistics.paired import (
    Detectable,
    detectable,
    difference_over_both,
    difference_over_examples,
    difference_table,
    over_both,
    sampling_noise,
    smallest_detectable_difference,
)
from kdcli.statistics.variance_components import VarianceShares, split, split_difference, two_level, variance_shares

__all__ = [
    "CONFIDENCE",
    "LEVEL",
    "POWER",
    "Additive",
    "Array",
    "Detectable",
    "Estimate",
    "VarianceShares",
    "counted",
    "detectable",
    "difference_over_both",
    "difference_over_examples",
    "difference_over_seeds",
    "difference_table",
    "holm",
    "over_both",
    "over_examples",
    "over_seeds",
    "pareto_front",
    "sampling_noise",
    "share_of_gap",
    "smallest_detectable_difference",
    "split",
    "split_difference",
    "tied_for_best",
    "two_level",
    "variance_shares",
]
