"""Batched generation with a KV cache; answers do not depend on the batch."""

from kdcli.generation.batch import Completion, GenerationRequest, answers, generate
from kdcli.generation.sampling import sample, uniforms

__all__ = ["Completion", "GenerationRequest", "answers", "generate", "sample", "uniforms"]
