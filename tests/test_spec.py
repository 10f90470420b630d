import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcli.errors import UsageError
from kdcli.registry.spec import ObjectiveSpec, Term, parse_objective

_WORD = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
_VALUE = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    _WORD,
    _WORD.map(lambda word: f"(0.5*{word}+{word}:x=1)"),
)
_TERM = st.builds(
    Term, _WORD, st.dictionaries(_WORD, _VALUE, max_size=3), st.floats(0, 1e6, allow_nan=False).map(lambda w: w + 0.0)
)


@given(st.builds(ObjectiveSpec, st.lists(_TERM, min_size=1, max_size=4).map(tuple), st.none()))
@settings(max_examples=200, derandomize=True)
def test_printing_and_parsing_are_inverse(spec):
    assert parse_objective(str(spec)) == spec


@given(st.text(alphabet="ab1.e+-*:=,()@/\n \x1b", max_size=30))
@settings(max_examples=500, derandomize=True)
def test_any_text_parses_or_is_refused_in_one_line(text):
    said = ""
    try:
        parse_objective(text)
    except UsageError as error:
        said = str(error)
    assert "\n" not in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    "text, canonical",
    [
        ("0.5*ce + 0.50*akl:mu=0.6", "0.5*ce+0.5*akl:mu=0.6"),
        ("akl: mu = 0.6 , head_rule=paper", "akl:mu=0.6,head_rule=paper"),
        ("akl:mu=1e-4+ce", "akl:mu=1e-4+ce"),
        ("ab:alpha=1e+1+ce", "ab:alpha=1e+1+ce"),
        ("guest2e+ce", "guest2e+ce"),
        ("1.0*ce", "ce"),
        ("jsd:beta=0.1@student:rate=0.5", "jsd:beta=0.1@student:rate=0.5"),
        ("./my.py:Mine:a=1", "./my.py:Mine:a=1"),
        ("pkg.mod:Mine", "pkg.mod:Mine"),
        ("atkd:hard=(0.5*akl:mu=0.7+0.5*ce),k=.4", "atkd:hard=(0.5*akl:mu=0.7+0.5*ce),k=.4"),
        ("atkd:hard=./my.py:Mine", "atkd:hard=./my.py:Mine"),
    ],
)
def test_canonical_form(text, canonical):
    assert str(parse_objective(text)) == canonical


def test_a_plus_in_an_exponent_does_not_split():
    assert [term.name for term in parse_objective("ab:alpha=1e+1+2E+2*ce").terms] == ["ab", "ce"]


def test_a_guest_keeps_its_class_in_the_name():
    (term,) = parse_objective("0.5*./my.py:Mine:a=1").terms
    assert (term.name, dict(term.options), term.weight) == ("./my.py:Mine", {"a": "1"}, 0.5)


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "a term is empty"),
        ("ce+", "a term is empty"),
        ("ce@", "a term is empty"),
        ("-1*ce", "the weight -1 must be a finite number >= 0"),
        ("1e999*ce", "the weight 1e999 must be a finite number"),
        ("a*ce", '"a" is not a weight'),
        ("2*3*ce", '"3" is not a weight'),
        ("akl:mu,gap=3", '"mu" after akl is not key=value'),
        ("akl:mu=1,mu=2", 'option "mu" of akl is given twice'),
        ("ce@student@dataset", "two sources"),
        ("ce@0.5*student", "has a weight"),
        ("atkd:hard=(akl", "parentheses do not match"),
        ("atkd:hard=akl)", "parentheses do not match"),
        ("(" * 30 + ")" * 30, "nested more than 20 deep"),
        ("ce+" * 5000, "15,000 characters"),
        ("a,b", '"a,b" is not a name'),
    ],
)
def test_refusals_name_the_piece(text, says):
    with pytest.raises(UsageError) as caught:
        parse_objective(text)
    assert says in caught.value.what
    assert caught.value.fix
    assert caught.value.code == "SPEC-01"
