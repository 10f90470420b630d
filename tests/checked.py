"""What `--jaxtyping-packages` puts on every function: a check of types, and of shapes where there are arrays.

jaxtyping's own decorator binds the arguments and checks them twice on every call, of functions without any array too.
That was a quarter of the time of the tests of training. Here a function without an array in its annotations gets
beartype's check alone, and one with arrays the same check within jaxtyping's memory of the sizes of its dimensions.
"""

import dataclasses
import inspect
import typing

import jaxtyping
from beartype import BeartypeConf, beartype

SHAPED = jaxtyping.jaxtyped
TYPED = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for every static checker


def checked(target=None, *, typechecker=None):
    del typechecker  # what the option names; always beartype here
    if target is None:
        return checked
    if inspect.isclass(target):
        if dataclasses.is_dataclass(target) and "__init__" in vars(target):
            target.__init__ = checked(target.__init__)
        return target
    try:
        hints = typing.get_type_hints(target, include_extras=True).values()
    except (NameError, TypeError):  # an annotation that exists for the type checker only: jaxtyping skips it
        return SHAPED(target, typechecker=TYPED)
    return SHAPED(TYPED(target), typechecker=None) if any(map(has_array, hints)) else TYPED(target)


def has_array(hint) -> bool:
    array = inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)
    return array or any(map(has_array, typing.get_args(hint)))
