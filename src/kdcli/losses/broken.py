"""What a check of the contract raises."""


class Broken(Exception):
    """A loss breaks the contract; says how, as *expected X, got Y*."""


def require(kept: bool, detail: str) -> None:
    """Raise unless the contract is kept.

    Raises:
        Broken: it is not.
    """
    if not kept:
        raise Broken(detail)
