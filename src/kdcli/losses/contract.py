"""The contract every loss must keep, as checks that run on any loss, guests included."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass

from kdcli.errors import InputError
from kdcli.losses import contract_manners as manners
from kdcli.losses import contract_numbers as numbers
from kdcli.losses.base import DistillLoss
from kdcli.losses.broken import Broken
from kdcli.losses.contract_device import device_clean
from kdcli.text import one_line, typed


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        name: of the check.
        passed: whether the loss keeps this part of the contract.
        detail: what is wrong; for a check that passed, empty or why it does not apply.
    """

    name: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True)
class Check:
    """One part of the contract.

    Args:
        name: short, as printed.
        run: raises Broken where the loss breaks it; returns a note or nothing.
        after: checks without which this one tells nothing; it is left out when one of them failed.
    """

    name: str
    run: Callable[[DistillLoss], str | None]
    after: tuple[str, ...] = ()


_VALUES = ("answers", "shape", "float32", "finite", "inputs kept", "repeatable")
_BOTH = (*_VALUES, "gradient")
_ALONE = (*_BOTH, "independent", "order")

CHECKS = (
    Check("documented", manners.documented),
    Check("round trip", manners.round_trip),
    Check("surroundings kept", manners.surroundings_kept),
    Check("facts", manners.facts, ("surroundings kept",)),
    Check("answers", manners.answers, ("facts",)),
    Check("shape", numbers.shape, ("answers",)),
    Check("inputs kept", manners.inputs_kept, ("shape",)),
    Check("float32", numbers.float32, ("shape",)),
    Check("finite", numbers.finite, ("float32",)),
    Check("repeatable", numbers.repeatable, ("finite",)),
    Check("half precision", numbers.half_precision, _VALUES),
    Check("gradient", numbers.gradient, _VALUES),
    Check("independent", numbers.independent, _BOTH),
    Check("order", numbers.order, _BOTH),
    Check("chunks", numbers.chunks, _ALONE),
    Check("splits", numbers.splits, (*_ALONE, "chunks")),
    Check("device clean", device_clean, _BOTH),
    Check("large logits", numbers.large_logits, _ALONE),
    Check("filtered logits", numbers.filtered_logits, _ALONE),
    Check("equal models", numbers.equal_models, _ALONE),
    Check("divergence", numbers.divergence, (*_ALONE, "equal models")),
    Check("temperatures", numbers.temperatures, _ALONE),
    Check("parts", numbers.parts, _ALONE),
    Check("closed form", numbers.closed_form, (*_ALONE, "parts")),
)


def check_loss(loss: DistillLoss) -> list[Finding]:
    """Run the contract's checks on a loss.

    A check whose ground another one has already taken away is left out, so each mistake is
    reported once. What the loss raises, ``sys.exit`` included, is a finding.

    Args:
        loss: with the options to check it at.

    Returns:
        one finding per check that ran, in order.

    >>> from kdcli.losses.build import build_objective
    >>> all(finding.passed for finding in check_loss(build_objective("fkl")))
    True
    """
    findings: list[Finding] = []
    kept: set[str] = set()
    with manners.surroundings_restored():
        for check in CHECKS:
            if kept.issuperset(check.after):
                finding = _run(check, loss)
                findings.append(finding)
                if finding.passed:
                    kept.add(check.name)
    return findings


def try_loss(loss: DistillLoss, name: str) -> None:
    """Refuse a plug-in that fails on a few made-up tokens, before it is trained with.

    Args:
        loss: with its options.
        name: how it was named.

    Raises:
        InputError: PLUG-11, what the first of the checks that a training cannot do without has found.
    """
    with manners.surroundings_restored():
        for check in CHECKS:
            found = _run(check, loss) if check.name in ("facts", "answers", "shape") else None
            if found is not None and not found.passed:
                fix = f"mend the plug-in; kd losses check {typed(name)} says more"
                raise InputError("PLUG-11", f"{check.name}: {found.detail}", where=f"loss {name}", fix=fix)


def _run(check: Check, loss: DistillLoss) -> Finding:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            note = check.run(loss)
    except Broken as broken:
        return Finding(check.name, False, str(broken))
    except (Exception, SystemExit) as error:
        first = (str(error).splitlines() or [""])[0]
        return Finding(check.name, False, f"raised {type(error).__name__}: {one_line(first)}")
    return Finding(check.name, True, note or "")
