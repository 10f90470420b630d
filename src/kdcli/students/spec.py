"""The text form of a student that is cut out of its teacher: ``cut:layers=2,ffn=64,by=magnitude``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Literal, NoReturn, TypeAlias, get_args

from kdcli.errors import UsageError
from kdcli.models.family_layout import Family, Form
from kdcli.registry.spec import student_options
from kdcli.text import one_line

PREFIX = "cut:"
Score: TypeAlias = Literal["magnitude", "activation", "taylor", "influence", "loss", "first", "spaced", "random"]
Unit: TypeAlias = Literal["layers", "heads", "ffn", "width"]
Half: TypeAlias = Literal["attention", "mlp"]
Method: TypeAlias = Literal["magnitude", "wanda", "sparsegpt"]
Pattern: TypeAlias = Literal["unstructured", "2:4"]
SCORES: tuple[Score, ...] = get_args(Score)
UNITS: tuple[Unit, ...] = get_args(Unit)
OF_LAYERS: tuple[Score, ...] = ("magnitude", "taylor", "influence", "loss", "first", "spaced", "random")
OF_PARTS: tuple[Score, ...] = ("magnitude", "activation", "taylor", "first", "random")
"""Scores of heads, feed-forward units and hidden dimensions."""
FROM_ROWS: tuple[Score, ...] = ("activation", "taylor", "influence", "loss")
METHODS: tuple[Method, ...] = get_args(Method)
METHODS_ON_ROWS: tuple[Method, ...] = ("wanda", "sparsegpt")
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
GROUP = 4
"""Inputs that follow each other, of which the pattern 2:4 keeps two."""
_EXAMPLE = "cut:layers=2,by=influence"
_COUNTS = ("heads", "ffn", "width", "keep_first", "keep_last", "rows", "seed")
_LARGEST = 1_000_000
_STEPS = 256
_MULTIPLE = 8


@dataclass(frozen=True)
class Skip:
    """Which layers do without a half.

    Args:
        by: ``last``, ``score``, or ``layers`` where they are named.
        count: how many, of ``last`` and ``score``.
        layers: those that are named.
    """

    by: Literal["last", "score", "layers"]
    count: int = 0
    layers: tuple[int, ...] = ()

    def __str__(self) -> str:
        return "-".join(map(str, self.layers)) if self.by == "layers" else f"{self.by}:{self.count}"


@dataclass(frozen=True)
class CutSpec:
    """What is to be left of a teacher; None leaves a size as it is.

    Args:
        layers: how many, or which.
        heads: query heads of each layer.
        ffn: feed-forward units of each layer.
        width: numbers of a hidden state.
        params: share of the teacher's parameters to keep at most.
        over: the sizes that ``params`` makes smaller, all by the same share.
        by: the score that says what stays.
        layers_by: the score of layers, where it is another.
        keep_first: the first so many layers stay.
        keep_last: the last so many layers stay.
        rows: rows that scores are taken on.
        seed: of the score ``random``.
        skip_attention: layers of the student that do without attention.
        skip_mlp: layers of the student that do without feed-forward half.
        except_last: the last layer keeps both.
        sparse: share of the weights of the linear layers inside the decoder's layers that becomes 0.
        method: what chooses these weights.
        pattern: where they may lie.
    """

    layers: int | tuple[int, ...] | None = None
    heads: int | None = None
    ffn: int | None = None
    width: int | None = None
    params: float | None = None
    over: tuple[Unit, ...] = ("heads", "ffn", "width")
    by: Score = "magnitude"
    layers_by: Score | None = None
    keep_first: int = 0
    keep_last: int = 0
    rows: int = 64
    seed: int = 0
    skip_attention: Skip | None = None
    skip_mlp: Skip | None = None
    except_last: bool = False
    sparse: float | None = None
    method: Method = "magnitude"
    pattern: Pattern = "unstructured"

    def __str__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        told = [f"{one.name}={_text(values[one.name])}" for one in fields(self) if values[one.name] != one.default]
        return PREFIX + ",".join(told)

    def cuts(self, unit: Unit) -> bool:
        """Whether a size is given, or left to ``params``."""
        return getattr(self, unit) is not None or (self.params is not None and unit in self.over)

    @property
    def scores_layers(self) -> bool:
        """Whether layers are counted and not named."""
        return self.cuts("layers") and not isinstance(self.layers, tuple)

    @property
    def scores_parts(self) -> bool:
        """Whether heads, feed-forward units or hidden dimensions are cut."""
        return any(self.cuts(unit) for unit in ("heads", "ffn", "width"))

    @property
    def layer_score(self) -> Score:
        """The score of layers."""
        return self.layers_by or (self.by if self.by in OF_LAYERS else "influence")

    @property
    def scores(self) -> tuple[Score, ...]:
        """The scores that are taken."""
        return (*([self.layer_score] if self.scores_layers else []), *([self.by] if self.scores_parts else []))

    @property
    def read_on_rows(self) -> tuple[str, ...]:
        """The options that say something is measured on rows, as they are typed."""
        of_layers = "by" if self.layer_score == self.by else "layers_by"
        skips = {"skip_attention": self.skip_attention, "skip_mlp": self.skip_mlp}
        scored = {
            of_layers: self.layer_score if self.scores_layers and self.layer_score in FROM_ROWS else None,
            **({"by": self.by} if self.scores_parts and self.by in FROM_ROWS else {}),
            **{key: skip if skip is not None and skip.by == "score" else None for key, skip in skips.items()},
            "method": self.method if self.sparse is not None and self.method in METHODS_ON_ROWS else None,
        }
        return tuple(f"{key}={value}" for key, value in scored.items() if value is not None)

    @property
    def needs_rows(self) -> bool:
        """Whether something is measured on rows."""
        return bool(self.read_on_rows)

    @property
    def without_rows(self) -> str:
        """What to choose instead of each option that needs rows."""
        given = [one.partition("=") for one in self.read_on_rows]
        return " and ".join(
            f"{key}={value.replace('score', 'last')}" if key.startswith("skip") else f"{key}=magnitude"
            for key, _, value in given
        )


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ("-" if value and isinstance(value[0], int) else "+").join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def is_cut(student: str) -> bool:
    """Whether a student is a ``cut:`` spec."""
    return student.startswith(PREFIX)


def parse_cut(text: str) -> CutSpec:
    """Read a ``cut:`` spec.

    Args:
        text: as typed.

    Raises:
        UsageError: CUT-02 naming the option or value that cannot be used.

    >>> str(parse_cut("cut: layers=2, by=magnitude, ffn=64"))
    'cut:layers=2,ffn=64'
    """
    values = student_options(text, [field.name for field in fields(CutSpec)], "CUT-02", _EXAMPLE)
    if not {*UNITS, "params", "skip_attention", "skip_mlp", "sparse"} & set(values):
        _refuse(text, "it cuts nothing", f"say what to keep, as in {_EXAMPLE} or cut:params=0.5, or cut:sparse=0.5")
    readers = {**dict.fromkeys(_COUNTS, _number), **_READERS}
    given = {key: readers[key](text, key, value) for key, value in values.items()}
    spec = CutSpec(**given)
    _check_together(text, spec, set(values))
    return spec


def _check_together(text: str, spec: CutSpec, typed: set[str]) -> None:
    """Refuse options that contradict each other or would change nothing."""
    if spec.by not in OF_PARTS and spec.scores_parts:
        what = f"{spec.by} scores layers alone, and {_parts(spec)} is cut, too"
        _refuse(text, what, f"write layers_by={spec.by}, and for by one of {', '.join(OF_PARTS)}")
    if "by" in typed and not spec.scores_parts and (not spec.scores_layers or spec.layers_by is not None):
        _refuse(text, f"by={spec.by} has no effect: nothing is left that it scores", "leave it out")
    for key in ("layers_by", "keep_first", "keep_last"):
        if key in typed and not spec.scores_layers:
            _refuse(text, f"{key} has no effect where layers are not counted", "add layers=N, or leave it out")
    if "by" in typed and spec.by not in OF_LAYERS and spec.scores_layers and not spec.scores_parts:
        _refuse(text, f"{spec.by} scores no layers", f"choose one of {', '.join(OF_LAYERS)}")
    if "over" in typed and spec.params is None:
        _refuse(text, "over has no effect without params", "add params=0.5, or leave it out")
    for unit in spec.over if "over" in typed else ():
        if getattr(spec, unit) is not None:
            _refuse(text, f"{unit} is given, and over leaves it to params", f"leave {unit} out of one of the two")
    if "except_last" in typed and all(
        one is None or one.by == "layers" for one in (spec.skip_attention, spec.skip_mlp)
    ):
        _refuse(text, "except_last has no effect without skip_attention or skip_mlp by last or score", "leave it out")
    if "rows" in typed and not spec.needs_rows:
        what, other = "rows has no effect: nothing is measured on rows", "by=activation"
        _refuse(text, what, f"leave it out, or choose {'method=wanda' if spec.sparse is not None else other}")
    if "seed" in typed and "random" not in spec.scores:
        _refuse(text, "seed has no effect: no score is random", "leave it out, or choose by=random")
    if isinstance(spec.layers, int) and spec.keep_first + spec.keep_last > spec.layers:
        what = f"keep_first={spec.keep_first} and keep_last={spec.keep_last} are more than layers={spec.layers}"
        _refuse(text, what, "keep fewer, or more layers")
    for key in ("method", "pattern"):
        if key in typed and spec.sparse is None:
            _refuse(text, f"{key} has no effect without sparse", "add sparse=0.5, or leave it out")
    if spec.pattern == "2:4" and spec.sparse != 0.5:
        what = f"pattern=2:4 makes half of the weights 0, and sparse={spec.sparse:g} asks for another share"
        _refuse(text, what, "write sparse=0.5, or leave pattern out")


def _parts(spec: CutSpec) -> str:
    return " and ".join(unit for unit in ("heads", "ffn", "width") if spec.cuts(unit))


def _number(text: str, key: str, value: str) -> int:
    least = 0 if key in ("seed", "keep_first", "keep_last") else 1
    if not value.isascii() or not value.isdecimal() or not least <= int(value[:9]) <= _LARGEST:
        _refuse(text, f'{key} must be a whole number >= {least}, got "{one_line(value, 40)}"', f"write {_EXAMPLE}")
    return int(value)


def _layers(text: str, key: str, value: str) -> int | tuple[int, ...]:
    if "-" not in value.strip("-"):
        return _number(text, key, value)
    found = read_list(text, key, value)
    if list(found) != sorted(set(found)):
        _refuse(text, f"{key}={one_line(value, 40)} are not in order, each once", "write them as in layers=0-2-5")
    return found


def read_list(text: str, key: str, value: str) -> tuple[int, ...]:
    """Read layers by number, as in ``0-2-5``.

    Raises:
        UsageError: CUT-02.
    """
    pieces = value.split("-")
    if not all(piece.isascii() and piece.isdecimal() and len(piece) < 7 for piece in pieces):
        what = f'{key} must name layers as in 0-2-5, got "{one_line(value, 40)}"'
        _refuse(text, what, "number them from 0 on, with - between them")
    return tuple(int(piece) for piece in pieces)


def _skip(text: str, key: str, value: str) -> Skip:
    by, colon, count = value.partition(":")
    if colon and by in ("last", "score"):
        return Skip("last" if by == "last" else "score", _number(text, key, count))
    if colon or not value[:1].isdecimal():
        what = f'{key} must be last:N, score:N or a list as 3-5-7, got "{one_line(value, 40)}"'
        _refuse(text, what, f"write {key}=score:2")
    return Skip("layers", layers=tuple(sorted(set(read_list(text, key, value)))))


def _switch(text: str, key: str, value: str) -> bool:
    if value not in ("true", "false"):
        _refuse(text, f'{key} must be true or false, got "{one_line(value, 40)}"', f"write {key}=true")
    return value == "true"


def _share(text: str, key: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        _refuse(text, f'{key} must be a share above 0, at most 1, got "{one_line(value, 40)}"', "as in params=0.5")
    return share


def _sparse(text: str, key: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        what = f'{key} must be the share of zeros, above 0 and below 1, got "{one_line(value, 40)}"'
        _refuse(text, what, "as in sparse=0.5")
    return share


def _one_of(text: str, key: str, value: str) -> str:
    allowed: tuple[str, ...] = METHODS if key == "method" else PATTERNS
    if value not in allowed:
        near = get_close_matches(value, allowed, 1)
        fix = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(allowed)}"
        _refuse(text, f'{key}="{one_line(value, 40)}" is not known', fix)
    return value


def _over(text: str, key: str, value: str) -> tuple[Unit, ...]:
    named = value.split("+")
    if len(set(named)) < len(named) or set(named) - set(UNITS):
        what = f'{key} must name some of {", ".join(UNITS)}, each once, got "{one_line(value, 40)}"'
        _refuse(text, what, "as in over=ffn+heads")
    return tuple(unit for unit in UNITS if unit in named)


def _score(text: str, key: str, value: str) -> Score:
    allowed: tuple[Score, ...] = SCORES if key == "by" else OF_LAYERS
    found: list[Score] = [one for one in allowed if one == value]
    if not found:
        near = get_close_matches(value, allowed, 1)
        fix = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(allowed)}"
        what = "is no score of layers" if value in SCORES else "is no score"
        _refuse(text, f'{key}="{one_line(value, 40)}" {what}', fix)
    return found[0]


_READERS: dict[str, Callable[[str, str, str], object]] = {
    "layers": _layers, "params": _share, "over": _over, "by": _score, "layers_by": _score,
    "skip_attention": _skip, "skip_mlp": _skip, "except_last": _switch,
    "sparse": _sparse, "method": _one_of, "pattern": _one_of,
}  # fmt: skip


def _refuse(text: object, what: str, fix: str, code: str = "CUT-02") -> NoReturn:
    raise UsageError(code, what, where=f'student "{one_line(str(text))}"', fix=fix)


# From what is asked for to the sizes of the student.


def choose_sizes(
    spec: CutSpec,
    form: Form,
    family: Family,
    count: Callable[[Form], int],
    refused: Callable[[Form], str] = lambda form: "",
) -> Form:
    """Return the sizes of the student.

    Args:
        spec: what is asked for.
        form: the teacher's sizes.
        family: its family.
        count: returns the parameters of a model of given sizes.
        refused: returns why the family takes no model of given sizes, empty where it does.

    Raises:
        UsageError: CUT-03, the teacher does not have so many, or cannot be cut there.
    """
    made = _chosen(spec, form, family, count, refused)
    _check_share(spec, made)
    return made


def _chosen(
    spec: CutSpec, form: Form, family: Family, count: Callable[[Form], int], refused: Callable[[Form], str]
) -> Form:
    asked = _as_asked(spec, form, family)
    if form.width != form.embedding == asked.width:
        what = f"width={spec.width} is the size of its embedding, and the projection between the two would go"
        _refuse(spec, what, "give another width", "CUT-03")
    if spec.params is None:
        if why := refused(asked):
            near = max(asked.width // asked.heads, 1) * asked.heads
            _refuse(spec, f"no such model: {why}", f"give other heads, or width={near}", "CUT-03")
        return asked
    free: set[Unit] = {unit for unit in spec.over if getattr(spec, unit) is None}
    if family.spans and (spec.width or spec.heads):
        free -= {"width", "heads"}
    if not free:
        _refuse(spec, "params has nothing left to choose", "leave one of the sizes out", "CUT-03")
    tried = {_shrunk(asked, family, free, spec, step / _STEPS) for step in range(1, _STEPS + 1)}
    tried = {one for one in tried if form.width == form.embedding or one.width != one.embedding}
    counted = sorted((count(one), one.ffn, one) for one in tried if not refused(one))
    if not counted:
        _refuse(spec, "params: the family has no smaller model of these sizes", "name the sizes", "CUT-03")
    fitting = [one for number, _, one in counted if number <= spec.params * count(form)]
    if not fitting:
        least = counted[0][0] / count(form)
        what = f"params={spec.params:g} cannot be reached over {'+'.join(sorted(free))}; the least is {least:.3f}"
        _refuse(spec, what, "keep more, or name more in over", "CUT-03")
    return fitting[-1]


def _check_share(spec: CutSpec, form: Form) -> None:
    """Refuse zeros that a matrix of the student cannot have: each reads the width, all heads or all units."""
    if spec.sparse is None:
        return
    inputs = sorted({form.width, form.heads * form.head_size, form.ffn})
    if spec.pattern == "2:4" and (odd := [one for one in inputs if one % GROUP]):
        what = f"pattern=2:4, and a linear layer of the student has {odd[0]:,} inputs, which {GROUP} does not divide"
        _refuse(spec, what, "leave pattern out, or cut to a multiple of 4", "CUT-03")
    if few := [one for one in inputs if not 0 < round(spec.sparse * one) < one]:
        what = (
            f"sparse={spec.sparse:g} of {few[0]:,} inputs is {round(spec.sparse * few[0]):,} of each output's weights"
        )
        _refuse(spec, what, "give a share nearer to 0.5", "CUT-03")


def _as_asked(spec: CutSpec, form: Form, family: Family) -> Form:
    for unit, has in (("heads", form.heads), ("ffn", form.ffn), ("width", form.width)):
        wanted = getattr(spec, unit)
        if wanted is not None and wanted > has:
            _refuse(spec, f"{unit}={wanted}, and the teacher has {has:,}", f"give {unit} at most {has}", "CUT-03")
    highest = max(spec.layers) + 1 if isinstance(spec.layers, tuple) else spec.layers or 1
    if highest > form.layers:
        what = f"layers={_text(spec.layers)}, and the teacher has {form.layers}"
        fix = "name them from 0 on" if isinstance(spec.layers, tuple) else f"give layers at most {form.layers}"
        _refuse(spec, what, fix, "CUT-03")
    if spec.keep_first + spec.keep_last > form.layers:
        what = f"keep_first and keep_last are more than the teacher's {form.layers} layers"
        _refuse(spec, what, "keep fewer", "CUT-03")
    layers = len(spec.layers) if isinstance(spec.layers, tuple) else spec.layers or form.layers
    made = replace(form, layers=layers, ffn=spec.ffn or form.ffn)
    if family.spans:
        return _spanning(spec, made)
    if spec.heads is not None:
        per = form.heads_per_group
        if spec.heads % per:
            what = f"heads={spec.heads}: {per} query heads share keys and values, and stay or go together"
            _refuse(spec, what, f"give a multiple of {per}", "CUT-03")
        made = replace(made, groups=spec.heads // per)
    return _with_width(made, spec.width or form.width)


def _spanning(spec: CutSpec, form: Form) -> Form:
    """Return the sizes in a family whose heads span the width: both are cut together, in whole groups."""
    size, group = form.head_size, form.head_size * form.heads_per_group
    if spec.width is None:
        if spec.heads in (None, form.heads):
            return form
        what = f"heads={spec.heads}: in this family the heads span the width, and cannot be cut alone"
        fix = f"give width={max(spec.heads * size // group, 1) * group}; it is cut together with the heads"
        _refuse(spec, what, fix, "CUT-03")
    if spec.width % group:
        what = f"width={spec.width} is no multiple of the {group} numbers of {_counted(form.heads_per_group)}"
        near = max(spec.width // group, 1) * group
        _refuse(spec, what, f"give a multiple of {group}, such as width={near}", "CUT-03")
    if spec.heads is not None and spec.heads * size != spec.width:
        what = f"heads={spec.heads} of {size} numbers do not span width={spec.width}"
        _refuse(spec, what, f"leave heads out: width={spec.width} keeps {spec.width // size}", "CUT-03")
    return _with_width(replace(form, groups=spec.width // group), spec.width)


def _counted(heads: int) -> str:
    return "a head" if heads == 1 else f"{heads} heads that share keys and values"


def _with_width(form: Form, width: int) -> Form:
    """Return sizes of another width; an embedding of its own size is not cut."""
    return replace(form, width=width, embedding=width if form.embedding == form.width else form.embedding)


def _shrunk(form: Form, family: Family, free: set[Unit], spec: CutSpec, share: float) -> Form:
    """Return sizes of which the free ones are a share of what they were."""

    def part(whole: int) -> int:
        unit = _MULTIPLE if whole % _MULTIPLE == 0 else 1
        return max(unit, round(whole * share / unit) * unit)

    made = form
    if "layers" in free:
        made = replace(made, layers=max(1, spec.keep_first + spec.keep_last, round(form.layers * share)))
    if "ffn" in free:
        made = replace(made, ffn=part(form.ffn))
    if family.spans and free & {"heads", "width"}:
        groups = max(1, round(form.groups * share))
        return _with_width(replace(made, groups=groups), groups * form.heads_per_group * form.head_size)
    if "heads" in free:
        made = replace(made, groups=max(1, round(form.groups * share)))
    return _with_width(made, part(form.width)) if "width" in free else made


def choose_skipped(
    spec: CutSpec, half: Half, layers: int, holders: Sequence[int], scores: Sequence[float] = ()
) -> tuple[int, ...]:
    """Return the layers of a student that do without a half.

    Args:
        spec: what is asked for.
        half: which half.
        layers: layers of the student.
        holders: those whose attention must stay, for it holds the length of the KV cache.
        scores: similarity of what each layer's half reads and what it makes of it; the highest go first.

    Raises:
        UsageError: CUT-03, there are not so many, or one of them must stay.

    >>> choose_skipped(parse_cut("cut:skip_attention=last:2,except_last=true"), "attention", 5, [0])
    (2, 3)
    """
    key = f"skip_{half}"
    skip: Skip | None = spec.skip_attention if half == "attention" else spec.skip_mlp
    if skip is None:
        return ()
    must = set(holders) if half == "attention" else set[int]()
    free = [layer for layer in range(layers - spec.except_last) if layer not in must]
    if skip.by == "layers":
        if beyond := [layer for layer in skip.layers if layer >= layers]:
            _refuse(spec, f"{key} names layer {beyond[0]}, and the student has {layers}", "count from 0 on", "CUT-03")
        if held := must & set(skip.layers):
            what = f"the attention of layer {min(held)} is the first of its kind and holds the length of the KV cache"
            _refuse(spec, what, "leave that layer its attention", "CUT-03")
        return skip.layers
    if skip.count > len(free):
        what = f"{key}={skip}, and only {len(free)} of the student's {layers} layers can do without"
        _refuse(spec, what, f"ask for at most {len(free)}", "CUT-03")
    order = free if skip.by == "last" else sorted(free, key=lambda layer: scores[layer] if scores else 0)
    return tuple(sorted(order[len(order) - skip.count :]))
