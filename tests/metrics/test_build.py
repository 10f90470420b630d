import pytest

from kdcli.config.schema import EvalSettings
from kdcli.errors import UsageError
from kdcli.evaluation.scoring import build_metrics


def test_names_become_metrics_once_each_and_split_by_kind():
    settings = EvalSettings(metrics=("ece", "rouge", "rougeL", "on_policy_kl", "length", "agreement"), bins=7)
    texts, tokens, own, _ = build_metrics(settings)
    assert [metric.name for metric in texts] == ["rougeL", "length"]
    assert [metric.name for metric in tokens] == ["ece", "agreement"]
    assert [metric.name for metric in own] == ["on_policy_kl"]


def test_lengths_reach_the_metric_that_has_them():
    _, _, (bias,), _ = build_metrics(EvalSettings(metrics=("exposure_bias",), exposure_lengths=(4, 8)))
    assert bias.signature.startswith("exposure_bias|exposure_lengths:4,8|")


def test_bins_reach_the_metric_that_has_them():
    _, (ece,), *_ = build_metrics(EvalSettings(metrics=("ece",), bins=7))
    assert ece.signature.startswith("ece|bins:7|")


def test_an_unknown_name_is_refused():
    with pytest.raises(UsageError, match="bleu"):
        build_metrics(EvalSettings(metrics=("bleu",)))
