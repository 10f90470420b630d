"""A copy of a model in another precision."""

import copy
from dataclasses import replace

import torch

from kdcli.models.load import LanguageModel
from kdcli.models.split import split_head


def twin(model: LanguageModel, dtype: torch.dtype) -> LanguageModel:
    """Return the model with parameters of another type; autocast would convert them anew at each token."""
    copied = copy.deepcopy(model.model)
    torch.nn.Module.to(copied, dtype)
    return replace(model, model=copied, head=split_head(copied))
