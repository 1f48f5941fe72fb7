"""Models by name: a folder, or an id of the Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def first_line(error: Exception) -> str:
    """What an error of a library says, in one line that is not too long."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no lists of the weights that a part of a model leaves aside."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
