"""Dimension letters used in every shape annotation.

=====  ==========================================================
``b``  sequences in a micro-batch
``s``  positions in a padded sequence
``n``  valid (response) tokens of a micro-batch, flattened
``t``  the ``t <= n`` tokens of the chunk in hand
``v``  vocabulary entries of the student
``w``  vocabulary entries of the teacher: the same, unless its tokenizer is another one
``d``  width of the hidden states
=====  ==========================================================
"""

from typing import TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor

TokenValues: TypeAlias = Float[Tensor, " t"]
TokenLabels: TypeAlias = Int[Tensor, " t"]
TokenMask: TypeAlias = Bool[Tensor, " t"]
Logits: TypeAlias = Float[Tensor, "t v"]
TeacherLogits: TypeAlias = Float[Tensor, "t w"]
