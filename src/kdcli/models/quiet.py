"""Keeps transformers' progress bars, log lines and warnings off the user's terminal."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL

from transformers import logging


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers inside the block and restore its settings after it."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
