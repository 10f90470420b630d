"""Builds the metrics that settings name."""

from collections.abc import Sequence

from kdcli.config.schema import EvalSettings
from kdcli.metrics.base import Metric, TextMetric, TokenMetric
from kdcli.metrics.classification import ChoiceMetric
from kdcli.metrics.on_policy import OnPolicyMetric
from kdcli.registry.registry import METRICS


def build_metrics(
    settings: EvalSettings,
) -> tuple[list[TextMetric], list[TokenMetric], list[OnPolicyMetric], list[ChoiceMetric]]:
    """Construct the metrics named in the settings, each once, split by their inputs.

    Args:
        settings: names, and the options some of them take.

    Returns:
        metrics of texts, of token facts, of a model's own samples, and of given choices, in the order named.

    Raises:
        UsageError: an unknown name.

    >>> texts, tokens, own, choices = build_metrics(EvalSettings(metrics=("ppl", "rougeL", "perplexity")))
    >>> [metric.name for metric in texts], [metric.name for metric in tokens]
    (['rougeL'], ['perplexity'])
    """
    metrics = [build_metric(name, settings) for name in _unique(settings.metrics)]
    texts = [metric for metric in metrics if isinstance(metric, TextMetric)]
    tokens = [metric for metric in metrics if isinstance(metric, TokenMetric)]
    own = [metric for metric in metrics if isinstance(metric, OnPolicyMetric)]
    return texts, tokens, own, [metric for metric in metrics if isinstance(metric, ChoiceMetric)]


def build_metric(name: str, settings: EvalSettings) -> Metric:
    """Construct one metric with the options it takes, from settings fields of the same name."""
    found: type[Metric] = METRICS.resolve(name)
    return found(**{option: getattr(settings, option) for option in found.options if hasattr(settings, option)})


def _unique(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(METRICS.canonical(name) for name in names))
