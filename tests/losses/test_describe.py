import pytest

from kdcli.errors import UsageError
from kdcli.losses.build import describe
from kdcli.registry import catalog


@pytest.mark.parametrize("name", catalog.LOSSES)
def test_every_loss_has_a_full_card(name):
    card = describe(name)
    assert card.name == name
    assert all((card.formula, card.reference, card.cost, card.doc, card.summary))
    assert "\n" not in card.summary
    assert card.aliases == tuple(alias for alias, target in catalog.LOSS_ALIASES.items() if target == name)
    for option in card.options:
        assert option.name
        assert option.type
        assert option.default
        assert option.text


def test_options_say_type_default_and_bounds():
    options = {option.name: option for option in describe("akl").options}
    mu = options["mu"]
    assert (mu.type, mu.default, mu.bounds) == ("number", "0.5", "in [0, 1]")
    assert options["head_rule"].type == "paper|official"
    assert (options["temperature"].bounds, options["scale_tau2"].default) == ("> 0", "true")


def test_nested_losses_are_options_of_type_loss():
    options = {option.name: option for option in describe("atkd").options}
    assert (options["hard"].type, options["hard"].default) == ("loss", "none")
    assert options["k"].bounds == "in [0, 1]"
    assert options["scope"].type == "micro_batch|sequence"


def test_an_alias_leads_to_the_same_card():
    assert describe("forward_kl") == describe("fkl")


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="unknown loss"):
        describe("alk")
