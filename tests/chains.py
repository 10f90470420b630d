"""Language models that are first-order Markov chains, exactly: every next token depends on the last one alone."""

import numpy as np
import torch

import tiny
from kdcli.models.load import LanguageModel, assemble

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "b", "c"]
START, END, A, B, C = 1, 2, 4, 5, 6
NEVER = -60.0


def chain(table: dict[int, dict[int, float]], name: str = "chain") -> LanguageModel:
    """A model that follows a table of last token -> next token -> probability; other tokens are never sampled.

    Its embedding is one-hot, its layer adds nothing, and the head reads the table's row off the one-hot vector.
    """
    size = len(WORDS)
    model = tiny.model(
        "llama", vocab=size, hidden_size=size + 1, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=False,
    )  # fmt: skip
    logits = np.full((size, size), NEVER)
    for last, row in table.items():
        for token, probability in row.items():
            logits[last, token] = np.log(probability)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight[:, :size] = torch.eye(size)
        scale = np.sqrt(size + 1)  # what the norm makes of a one-hot vector
        model.lm_head.weight[:, :size] = torch.tensor(logits.T / scale, dtype=torch.float32)
    return assemble(model, tiny.tokenizer(WORDS), name, name, device=torch.device("cpu"), role="teacher")


def save(table: dict[int, dict[int, float]], folder):
    """The same chain as a model folder."""
    decoder = chain(table)
    decoder.model.save_pretrained(folder)
    tiny.tokenizer(WORDS).save_pretrained(folder)
    return folder


GOLDEN_TEACHER = {START: {A: 0.7, B: 0.3}, A: {A: 0.9, B: 0.1}, B: {A: 0.4, B: 0.6}}
GOLDEN_STUDENT = {START: {A: 0.5, B: 0.5}, A: {A: 0.6, B: 0.4}, B: {A: 0.5, B: 0.5}}
"""The two chains whose exposure bias is known in closed form."""

GOLDEN_R = (0.08228288, 0.20549522, 0.33901524, 0.47356602, 0.60821989)
GOLDEN_L_EPS = (0.08228288, 0.24672595, 0.42147669, 0.60138129, 0.78386280)
GOLDEN_EXCESS = (0.0, -16.711145, -19.564892, -21.253615, -22.407354)


def kl(p: dict[int, float], q: dict[int, float]) -> float:
    """KL(p‖q) of two rows of a table."""
    return sum(mass * np.log(mass / q[token]) for token, mass in p.items() if mass)


def accumulated(prefix_of, teacher, student, length: int) -> np.ndarray:
    """Sum over t <= l of E[KL(teacher‖student)_t], prefixes from one chain; an ended sequence adds 0; ``[length]``."""
    at = {START: 1.0}
    sums, total = [], 0.0
    for _ in range(length):
        total += sum(mass * kl(teacher[last], student[last]) for last, mass in at.items())
        sums.append(total)
        after: dict[int, float] = {}
        for last, mass in at.items():
            for token, probability in prefix_of[last].items():
                if token != END:
                    after[token] = after.get(token, 0.0) + mass * probability
        at = after
    return np.array(sums)
