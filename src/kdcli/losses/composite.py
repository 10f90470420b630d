"""Losses inside losses: their facts kept apart by prefix, their needs merged."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import Tensor, nn

from kdcli.losses.base import Dims, DistillLoss, Facts, Matches, Needs, Tokens
from kdcli.losses.rows import Rows


def losses_inside(loss: DistillLoss) -> list[DistillLoss]:
    """Return the losses among the options of a loss, however deep in pairs and lists."""
    return list(_losses(tuple(getattr(loss, name) for name in type(loss).model_fields)))


def _losses(value: object) -> Iterator[DistillLoss]:
    if isinstance(value, DistillLoss):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _losses(item)


def merged_needs(children: Mapping[str, DistillLoss]) -> Needs:
    """Return what all children together ask for."""
    needs = Needs(teacher=False, logits=False)
    for child in children.values():
        needs = needs | child.needs()
    return needs


def merged_matches(children: Mapping[str, DistillLoss], dims: Dims) -> Matches:
    """Return the layers that all children together compare."""
    found = Matches()
    for child in children.values():
        found = found | child.matches(dims)
    return found


def merged_modules(children: Mapping[str, DistillLoss], dims: Dims) -> nn.ModuleDict:
    """Return the learned parts of each child under its label; a child without any is left out."""
    made = {label: child.modules(dims) for label, child in children.items()}
    return nn.ModuleDict({label: modules for label, modules in made.items() if len(modules)})


def refuse_features(children: Mapping[str, DistillLoss], name: str) -> None:
    """Refuse children that compare layers inside the models.

    Raises:
        ValueError: one does.
    """
    if merged_needs(children).features:
        raise ValueError(f"{name} works on logits; add hidden and attention to it, as in {name}+hidden")


def survey_all(children: Mapping[str, DistillLoss], tok: Tokens) -> dict[str, Tensor]:
    """Survey each child that asks for it; its facts are prefixed with its label and a slash."""
    facts: dict[str, Tensor] = {}
    for label, child in children.items():
        if child.needs().survey != "none":
            facts |= _outside(label, child.survey(inside(label, child, tok)))
    return facts


def plan_all(children: Mapping[str, DistillLoss], facts: Facts) -> dict[str, Tensor]:
    """Let each child plan over its own facts of the micro-batch and those of the source."""
    planned: dict[str, Tensor] = {}
    for label, child in children.items():
        planned |= _outside(label, child.plan(child_facts(label, facts)))
    return planned


def planned_for(label: str, name: str) -> str:
    """Return the name outside of a fact that a child planned."""
    return f"{label}/{name}"


def inside(label: str, child: DistillLoss, tok: Tokens) -> Tokens:
    """Return the tokens as the child would see them on its own."""
    teacher = tok.teacher if child.needs().teacher else None
    features = None if tok.features is None else tok.features.within(label)
    return replace(tok, teacher=teacher, facts=child_facts(label, tok.facts), logged={}, features=features)


def hand_on(label: str, child: DistillLoss, seen: Tokens, tok: Tokens) -> None:
    """Log on the tokens in hand, under its label, what the child logged on its own."""
    for name, value in seen.logged.items():
        own = name.startswith(f"{child.name}.")
        tok.logged[f"{label}{name.removeprefix(child.name)}" if own else f"{label}.{name}"] = value


def take(tok: Tokens, rows: Rows) -> Tokens:
    """Return some of the tokens, copied; all of them where the host may not read which.

    The logits of the others are 0 then: nothing that is infinite there can come into a value or a gradient.

    Args:
        tok: the tokens in hand.
        rows: those wanted.
    """
    if rows.index is None:
        teacher = None if tok.teacher is None else rows.alone(tok.teacher)
        return replace(tok, student=rows.alone(tok.student), teacher=teacher, logged={})
    index = rows.index
    teacher = None if tok.teacher is None else tok.teacher[index]
    coarse = None if tok.coarse is None else tok.coarse[index]
    facts = {key: value[index] for key, value in tok.facts.items()}
    features = None if tok.features is None else tok.features[index]
    return replace(
        tok,
        labels=tok.labels[index],
        student=tok.student[index],
        teacher=teacher,
        facts=facts,
        logged={},
        coarse=coarse,
        features=features,
    )


def _outside(label: str, facts: Facts) -> dict[str, Tensor]:
    return {planned_for(label, key): value for key, value in facts.items()}


def child_facts(label: str, facts: Facts) -> dict[str, Tensor]:
    """Return the facts of the source, which have no prefix, and the child's own without theirs."""
    prefix = f"{label}/"
    shared = {key: value for key, value in facts.items() if "/" not in key}
    return shared | {key.removeprefix(prefix): value for key, value in facts.items() if key.startswith(prefix)}
