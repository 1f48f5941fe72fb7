"""Models by name: a folder, or an id of the Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def first_line(error: Exception) -> str:
    """What an error of a library says, in one line that is not too long."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def local_folder(name: str) -> Path:
    """Where a pipeline lies: the folder itself, or, where there is none, a download of the hub's pipeline of that id.

    Of the hub only configurations, vocabularies and weights in safetensors are taken.

    Raises:
        ValueError: The hub does not give it.
    """
    if Path(name).exists() or not HUB_ID.fullmatch(name):
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            name,
            allow_patterns=["*.json", "*/*.json", "*/*.txt", "*/*model.safetensors"],
            ignore_patterns=["*fp16*", "*non_ema*", "safety_checker/*"],
        )
    except Exception as error:  # The hub's client raises many kinds.
        raise ValueError(f"{name}: no such folder, and the hub does not give it ({first_line(error)})") from None
    return Path(found)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no lists of the weights that a part of a model leaves aside."""
    from transformers.utils import logging

    with _quiet(logging):
        yield


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """No progress bars, no list of the tokens that a caption is too long by, padding included, no advice on types."""
    from diffusers.utils import logging

    with _quiet(logging):
        yield


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Errors only, from a library whose ``logging`` module is given; afterwards as before."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
