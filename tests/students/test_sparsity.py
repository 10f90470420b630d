"""Zeros in linear layers: against numpy, against least squares, and against every choice there is."""

from itertools import combinations

import numpy as np
import pytest
import torch

import sliced
from kdcli.models.family_layout import FAMILIES, family_of
from kdcli.models.head import trunk_of
from kdcli.models.internals import Conv1D
from kdcli.models.left_out import LeftOut
from kdcli.models.skipping import zero_out
from kdcli.students.scores import batches_of
from kdcli.students.sparsity import BLOCK, prune, pruned, sparsegpt
from kdcli.students.spec import METHODS, parse_cut

CPU = torch.device("cpu")
families = pytest.mark.parametrize("family", FAMILIES)
methods = pytest.mark.parametrize("method", METHODS)


def spec_of(method, share=0.5, pattern="unstructured"):
    return parse_cut(f"cut:sparse={share},method={method},pattern={pattern}")


def batches():
    return batches_of(sliced.rows(), 6, 0, CPU)


def problem(outputs, inputs, tokens=40, seed=0):
    """Weights and correlated inputs, in fp64."""
    generator = torch.Generator().manual_seed(seed)
    weight, mix, seen = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((outputs, inputs), (inputs, inputs), (tokens, inputs))
    )
    return weight, seen @ mix


def error(weight, after, seen):
    return (seen @ (weight - after).T).square().sum(0)


def refit(weight, seen, kept):
    """One output's weights with others than these at 0 and these by least squares."""
    made = np.zeros(len(weight))
    made[kept] = np.linalg.lstsq(seen[:, kept], seen @ weight, rcond=None)[0]
    return made


def matrices(model):
    """Name -> weights ``[out, in]`` of the linear layers inside the layers, in fp64."""
    before = family_of(model.config, "").layers
    return {
        name: (one.weight.T if isinstance(one, Conv1D) else one.weight).detach().double().clone()
        for name, one in model.named_modules()
        if isinstance(one, torch.nn.Linear | Conv1D) and name.startswith(before)
    }


@torch.no_grad()
def inputs(model):
    """Name -> what a linear layer reads at all tokens, ``[tokens, in]``, in one pass of the whole model."""
    found = {name: [] for name in matrices(model)}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: found[name].append(args[0].reshape(*mask.shape, -1)[mask].double())
        )
        for name in found
    ]
    for batch in batches():
        mask = batch.attention_mask.bool()
        trunk_of(model)(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(values) for name, values in found.items()}


# A single matrix.


def test_two_inputs_by_hand():
    """H = [[2, .5], [.5, 1]]: without weight 0 the cost is .875, without weight 1 it is .07."""
    hessian, weight = (torch.tensor(one, dtype=torch.float64) for one in ([[2.0, 0.5], [0.5, 1.0]], [[1.0, -0.4]]))
    inverse = torch.linalg.inv(hessian)
    assert (weight[0].square() / (2 * inverse.diagonal())).tolist() == pytest.approx([0.875, 0.07], abs=1e-12)
    assert sparsegpt(weight, hessian / 2, 0.5, damp=0.0).tolist() == [[1.0, 0.0]]
    turned = sparsegpt(weight.flip(1), hessian.flip(0, 1) / 2, 0.5, damp=0.0)
    assert turned.tolist() == [[0.0, pytest.approx(0.9, abs=1e-12)]], "the update of weight 0 is -.1"


def test_one_column_less_is_the_least_squares_optimum():
    """Without input 0 the others are the refit, which costs w_0^2 / (2 [H^-1]_00)."""
    weight, seen = problem(3, 8)
    weight[:, 0] *= 1e-3
    after = sparsegpt(weight, seen.T @ seen, 1 / 8, damp=0.0)
    assert torch.equal(after == 0, torch.eye(8, dtype=torch.bool)[0].expand(3, 8))
    inverse = torch.linalg.inv(2 * seen.T @ seen)
    for row, made in zip(weight, after, strict=True):
        assert np.allclose(made, refit(row.numpy(), seen.numpy(), list(range(1, 8))), rtol=0, atol=1e-9)
        assert error(row[None], made[None], seen).item() == pytest.approx(row[0].item() ** 2 / (2 * inverse[0, 0]))


@pytest.mark.parametrize("seed", range(12))
def test_six_inputs_are_bounded_by_every_choice_with_its_refit(seed):
    weight, seen = problem(1, 6, seed=seed)
    row, known = weight[0].numpy(), seen.numpy()
    costs = {kept: ((known @ (row - refit(row, known, list(kept)))) ** 2).sum() for kept in combinations(range(6), 3)}
    least = min(costs.values())
    gram = seen.T @ seen
    found = {method: error(weight, pruned(weight, spec_of(method), gram), seen).item() for method in METHODS}
    exact = sparsegpt(weight, gram, 0.5, damp=0.0)
    assert error(weight, exact, seen).item() >= least * (1 - 1e-9)
    assert all(one >= least * (1 - 1e-9) for one in found.values())
    kept = tuple(torch.nonzero(exact[0]).flatten().tolist())
    assert error(weight, exact, seen).item() >= costs[kept] * (1 - 1e-9), "its own choice, refitted"


@pytest.mark.parametrize("share", [0.25, 0.5, 0.7])
def test_magnitude_and_wanda_against_numpy(share):
    weight, seen = problem(7, 20)
    gram = seen.T @ seen
    w, size = weight.numpy(), np.linalg.norm(seen.numpy(), axis=0)
    least = np.sort(np.abs(w).ravel())[round(share * w.size)]
    assert np.array_equal(pruned(weight, spec_of("magnitude", share)), np.where(np.abs(w) < least, 0.0, w))
    scores = np.abs(w) * size
    rows = np.sort(scores, axis=1)[:, [round(share * 20)]]
    assert np.array_equal(pruned(weight, spec_of("wanda", share), gram), np.where(scores < rows, 0.0, w))
    for method, table in (("magnitude", np.abs(w)), ("wanda", scores)):
        order = table.reshape(7, 5, 4).argsort(-1).argsort(-1)
        expected = np.where(order.reshape(7, 20) < 2, 0.0, w)
        assert np.array_equal(pruned(weight, spec_of(method, 0.5, "2:4"), gram), expected)


def test_sparsegpt_against_the_elimination_of_one_column_after_another():
    """Written with the inverse of what is left of H in place of a Cholesky factor."""
    weight, seen = problem(5, 16)
    share, hessian = 0.5, 2 * (seen.T @ seen).numpy()
    hessian += 0.01 * np.trace(hessian) / 16 * np.eye(16)
    w, left = weight.numpy().copy(), [np.linalg.inv(hessian[place:, place:]) for place in range(16)]
    scores = w**2 / np.array([one[0, 0] for one in left])
    zero = (scores.ravel().argsort().argsort() < round(share * w.size)).reshape(w.shape)
    for place in range(16):
        step = np.where(zero[:, place], w[:, place], 0.0)[:, None] * left[place][0] / left[place][0, 0]
        w[:, place:] -= step
    w[zero] = 0.0
    assert np.allclose(pruned(weight, spec_of("sparsegpt"), seen.T @ seen), w, rtol=0, atol=1e-9)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@methods
def test_the_share_is_met_exactly(method, share):
    weight, seen = problem(6, BLOCK + 40, tokens=300)
    after = pruned(weight, spec_of(method, share), seen.T @ seen) == 0
    if method == "magnitude":
        assert after.sum() == round(share * weight.numel())
    elif method == "wanda":
        assert set(after.sum(1).tolist()) == {round(share * weight.shape[1])}
    else:
        assert [one.sum().item() for one in after.split(BLOCK, dim=1)] == [
            round(share * one.numel()) for one in weight.split(BLOCK, dim=1)
        ]


@methods
def test_two_of_four_in_every_group(method):
    weight, seen = problem(6, BLOCK + 40, tokens=300)
    after = pruned(weight, spec_of(method, 0.5, "2:4"), seen.T @ seen)
    assert set((after.reshape(6, -1, 4) == 0).sum(-1).flatten().tolist()) == {2}


def test_an_input_that_is_never_there_has_no_weight():
    weight, seen = problem(4, 12)
    seen[:, 5] = 0.0
    after = sparsegpt(weight, seen.T @ seen, 0.25)
    assert torch.isfinite(after).all()
    assert (after[:, 5] == 0).all()
    assert (after == 0).sum() == 12


def test_equal_weights_do_not_go_by_whole_rows():
    """Of a ternary matrix all are equal; in the order of the matrix the first half of its outputs would be gone."""
    after = pruned(torch.ones(64, 64), spec_of("magnitude"))
    assert (after == 0).sum() == 64 * 64 // 2
    assert after.any(0).all()
    assert after.any(1).all()


# A model.


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@families
@methods
def test_every_linear_layer_is_pruned_on_what_reaches_it_and_nothing_else_is(family, method, pattern):
    """What a layer reads in the pruned model, and its weights before, give its weights after."""
    model = sliced.model(family)
    before, rest = matrices(model), dict(model.state_dict())
    rest = {name: value.clone() for name, value in rest.items()}
    spec = spec_of(method, 0.5, pattern)
    found = prune(model, spec, batches())
    assert {one.name for one in found} == set(before)
    after, seen = matrices(model), inputs(model)
    for one in found:
        name, known = one.name, seen[one.name]
        gram = known.T @ known
        again = pruned(before[name], spec, gram)
        assert torch.allclose(again, after[name], rtol=0, atol=1e-4), name
        assert ((again == 0) != (after[name] == 0)).float().mean() < 0.02
        assert (one.weights, one.zeros) == (before[name].numel(), int((after[name] == 0).sum()))
        assert one.zeros == one.weights // 2
        if method != "magnitude":
            lost = error(before[name], after[name], known).sum() / (known @ before[name].T).square().sum()
            assert one.error == pytest.approx(lost.item(), rel=1e-3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, rest[name]) == (name.removesuffix(".weight") not in before), name


@families
def test_sparsegpt_changes_a_layer_less_than_magnitude_does(family):
    """Its mask is chosen before weights move, so no theorem says so; of GPT-NeoX and OPT single layers are worse."""
    model = sliced.model(family)
    before = matrices(model)
    prune(model, spec_of("sparsegpt"), batches())
    after, seen = matrices(model), inputs(model)
    shares = []
    for name, weight in before.items():
        plain = error(weight, pruned(weight, spec_of("magnitude")), seen[name]).sum()
        shares.append((error(weight, after[name], seen[name]).sum() / plain).item())
    assert np.mean(shares) < 0.9
    assert max(shares) < 1.0 or family in ("gpt_neox", "opt")


@pytest.mark.parametrize("family", ["llama", "opt"])
@methods
def test_halves_that_are_left_out_are_not_counted(family, method):
    model, skipped = sliced.model(family), LeftOut((2,), (0,))
    zero_out(model, skipped)
    found = prune(model, spec_of(method), batches(), skipped)
    layout = family_of(model.config, "")
    names = {one.name for one in found}
    assert not any(name.startswith(f"{layout.layers}2.{layout.attention}.") for name in names)
    assert not any(name.startswith(f"{layout.layers}0.{half}") for name in names for half in layout.mlp)
    assert all(0.4 < one.zeros / one.weights < 0.6 for one in found)
    assert len(names) == len(matrices(model)) - (4 + (3 if family == "llama" else 2))
