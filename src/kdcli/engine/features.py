"""Terms of an objective on layers inside the two models: outside the chunked pass, by plain autograd."""

import torch
from torch import Tensor, nn

from kdcli.data.collate import Batch
from kdcli.engine.block import per_token
from kdcli.engine.chunked import Work
from kdcli.engine.inside import look
from kdcli.engine.pack import Packing
from kdcli.engine.projection import Projection
from kdcli.engine.teacher import OpenTeacher
from kdcli.losses.base import DistillLoss, Tokens
from kdcli.losses.layers import Dims, Features
from kdcli.models.load import LanguageModel
from kdcli.models.observe import drop_no_attention, eager_attention, prove_layers, shape_of, use_eager


class FeatureComparison:
    """Two models ready to show the layers that an objective compares, and its learned parts.

    Args:
        loss: the objective; it compares layers.
        student: changed where maps are asked for: eager attention, no attention dropout.
        teacher: left as it is.
        seed: of the learned parts.

    Raises:
        UsageError: FEAT-01, a layer that does not exist.
        InputError: MOD-24, a model whose layers cannot be collected.
    """

    def __init__(self, loss: DistillLoss, student: LanguageModel, teacher: OpenTeacher, seed: int) -> None:
        self.student, self.teacher = student, teacher
        self.dims = Dims(shape_of(student.model.config), shape_of(teacher.model.model.config))
        self.asked = loss.matches(self.dims)
        if self.asked.attention:
            use_eager(student.model)
            drop_no_attention(student.model)
        prove_layers(student.model, self.asked.student, learns=True)
        with eager_attention(teacher.model.model, wanted=bool(self.asked.attention)):
            prove_layers(teacher.model.model, self.asked.teacher, learns=False)
        parameter = next(student.model.parameters())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.learned = loss.modules(self.dims)
        self.learned.to(parameter.device, torch.promote_types(parameter.dtype, torch.float32))

    def look(self, batch: Batch, packing: Packing) -> tuple[Projection, Projection, Features]:
        """Run both trunks once; return both sides and the layers compared, all at the valid tokens."""
        own = look(self.student, batch, packing, self.asked.student)
        theirs = self.teacher.look(batch, packing, self.asked.teacher)
        reach = packing.positions % max(batch.labels.shape[1], 1) + 1
        return own.side, theirs.side, Features(own.inner, theirs.inner, reach, self.dims, self.learned)


def feature_terms(work: Work, features: Features) -> dict[str, Tensor]:
    """Return the terms on features, each ``[n]``, with gradient; what they watch goes into the work.

    Args:
        work: the micro-batch, after the chunked pass, whose facts are seen here too.
        features: both models' layers at its tokens.
    """
    if not work.labels.numel():
        return {}
    empty = features.reach.new_zeros((len(work.labels), 0), dtype=torch.float32)
    tok = Tokens(work.labels, empty, None, work.planned, progress=work.progress, features=features)
    terms = per_token(work.loss, work.loss.feature_parts(tok), tok)
    work.watched.update(tok.watched)
    return terms


def weighted(terms: dict[str, Tensor], weights: Tensor, learned: nn.ModuleDict) -> Tensor:
    """Return the weighted sum of terms over tokens; without any it is a zero that every learned part belongs to."""
    zero = weights.new_zeros(()) + sum(parameter.sum() * 0.0 for parameter in learned.parameters())
    return zero + sum((term * weights.to(term.dtype)).sum() for term in terms.values())
