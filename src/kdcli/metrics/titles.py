"""Titles and units of scores, as tables and sentences for people write them, and the names in files for programs."""

import re
from collections.abc import Mapping
from typing import Any

from kdcli.registry.catalog import EARLIER_NAMES

_PERCENT = "%"
_NATS = "nats"

TITLES = {
    "rougeL": ("Rouge-L", ""),
    "rouge1": ("Rouge-1", ""),
    "rouge2": ("Rouge-2", ""),
    "exact_match": ("exact match", _PERCENT),
    "token_f1": ("token F1", ""),
    "final_answer": ("final answer", _PERCENT),
    "parsed": ("answers with separator", _PERCENT),
    "perplexity": ("perplexity", ""),
    "nll": ("NLL", _NATS),
    "ece": ("ECE", ""),
    "brier": ("Brier score", ""),
    "ece_mass": ("ECE, equal mass", ""),
    "mce": ("MCE", ""),
    "top1_brier": ("top-1 Brier score", ""),
    "top1_brier_reliability": ("top-1 Brier reliability", ""),
    "top1_brier_resolution": ("top-1 Brier resolution", ""),
    "top1_brier_uncertainty": ("top-1 Brier uncertainty", ""),
    "top1_brier_within_variance": ("top-1 Brier variance within bins", ""),
    "top1_brier_within_covariance": ("top-1 Brier covariance within bins", ""),
    "temperature": ("temperature", ""),
    "ece_scaled": ("ECE, scaled", ""),
    "brier_scaled": ("Brier score, scaled", ""),
    "nll_scaled": ("NLL, scaled", _NATS),
    "accuracy": ("accuracy", _PERCENT),
    "macro_f1": ("macro F1", ""),
    "kappa": ("Cohen's kappa", ""),
    "answer_ece": ("answer ECE", ""),
    "answer_mce": ("answer MCE", ""),
    "answer_brier": ("answer Brier score", ""),
    "answer_nll": ("answer NLL", _NATS),
    "answer_ece_classwise": ("answer ECE, classwise", ""),
    "answer_ece_mass": ("answer ECE, equal mass", ""),
    "answer_ace": ("answer ACE", ""),
    "answer_brier_reliability": ("answer Brier reliability", ""),
    "answer_brier_resolution": ("answer Brier resolution", ""),
    "answer_brier_uncertainty": ("answer Brier uncertainty", ""),
    "answer_brier_within_variance": ("answer Brier variance within bins", ""),
    "answer_brier_within_covariance": ("answer Brier covariance within bins", ""),
    "answer_temperature": ("answer temperature", ""),
    "answer_ece_scaled": ("answer ECE, scaled", ""),
    "answer_brier_scaled": ("answer Brier score, scaled", ""),
    "answer_nll_scaled": ("answer NLL, scaled", _NATS),
    "kl_from_teacher": ("KL from teacher", _NATS),
    "kl_to_teacher": ("KL to teacher", _NATS),
    "agreement": ("agreement", _PERCENT),
    "jsd_to_teacher": ("JSD to teacher", _NATS),
    "tvd_to_teacher": ("TVD to teacher", ""),
    "acceptance": ("acceptance", _PERCENT),
    "on_policy_kl_from_teacher": ("KL from teacher, on-policy", _NATS),
    "on_policy_kl_to_teacher": ("KL to teacher, on-policy", _NATS),
    "on_policy_agreement": ("agreement, on-policy", _PERCENT),
    "on_policy_jsd": ("JSD to teacher, on-policy", _NATS),
    "on_policy_tvd": ("TVD to teacher, on-policy", ""),
    "on_policy_acceptance": ("acceptance, on-policy", _PERCENT),
    "on_policy_ece": ("ECE, on-policy", ""),
    "on_policy_brier": ("Brier score, on-policy", ""),
    "on_policy_nll": ("NLL, on-policy", _NATS),
    "ex_acc_err": ("excess accumulated error", _PERCENT),
    "spec_acceptance": ("draft acceptance", _PERCENT),
    "spec_expected": ("expected draft acceptance", _PERCENT),
    "spec_accepted_length": ("accepted draft tokens", ""),
    "spec_tokens_per_call": ("tokens per teacher call", ""),
    "spec_expected_tokens": ("expected tokens per teacher call", ""),
    "distinct_1": ("distinct 1-grams", _PERCENT),
    "distinct_2": ("distinct 2-grams", _PERCENT),
    "distinct_3": ("distinct 3-grams", _PERCENT),
    "distinct_4": ("distinct 4-grams", _PERCENT),
    "self_bleu": ("self-BLEU", ""),
    "repetition": ("repetition", _PERCENT),
    "length": ("answer length", ""),
    "length_ratio": ("length ratio", ""),
    "truncation_rate": ("truncation rate", _PERCENT),
}
"""Score of a built-in metric -> its title and its unit."""

_BY_LENGTH = re.compile(r"rougeL_(\d+)_(\d+|inf)")


def current(name: str) -> str:
    """Return the name that a metric or a score has now.

    >>> current("without_end"), current("rougeL")
    ('truncation_rate', 'rougeL')
    """
    return EARLIER_NAMES.get(name, name)


def current_column(name: str) -> str:
    """Return the name that a column of samples has now.

    >>> current_column("without_end.sums")
    'truncation_rate.sums'
    """
    head, dot, kind = name.partition(".")
    return f"{current(head)}{dot}{kind}"


def current_signature(text: str) -> str:
    """Return a signature under the name that its metric has now.

    >>> current_signature("without_end|refs:none")
    'truncation_rate|refs:none'
    """
    head, bar, rest = text.partition("|")
    return f"{current(head)}{bar}{rest}"


def current_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's entry of a score under the names that score and metric have now.

    Args:
        entry: with ``name``, ``metric`` and ``settings``.
    """
    changed = {"name": current(entry["name"]), "metric": current(entry["metric"])}
    return {**entry, **changed, "settings": current_signature(entry["settings"])}


def first(name: str) -> str:
    """Return the name that a score had in the version that first had it: identities of runs hold that.

    >>> first("truncation_rate"), first("rougeL")
    ('without_end', 'rougeL')
    """
    return next((earlier for earlier, now in EARLIER_NAMES.items() if now == name), name)


def title(name: str) -> str:
    """Return a score's title; the name where it has none.

    >>> title("kl_from_teacher"), title("rougeL_6_10"), title("my_score")
    ('KL from teacher', 'Rouge-L, 6 to 10', 'my_score')
    """
    if found := _BY_LENGTH.fullmatch(name):
        return f"Rouge-L, {found[1]} or more" if found[2] == "inf" else f"Rouge-L, {found[1]} to {found[2]}"
    return TITLES.get(name, (name, ""))[0]


def unit(name: str) -> str:
    """Return a score's unit; empty where it has none.

    >>> unit("kl_from_teacher"), unit("perplexity")
    ('nats', '')
    """
    return TITLES.get(name, ("", ""))[1]
