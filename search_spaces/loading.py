"""Declarations are Python files that define one name."""

import runpy
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from atdiff_core.config import Config

Declaration = TypeVar("Declaration", bound=Config)


def load_declared(path: Path, name: str, kind: type[Declaration]) -> Declaration:
    """What a Python file declares under ``name``.

    Raises:
        ValueError: The file is missing, fails, or defines nothing of that kind under that name.
    """
    if not path.is_file():
        raise ValueError(f"there is no {kind.__name__.lower()} at {path}")
    try:
        declared = runpy.run_path(str(path)).get(name)
    except ValidationError:
        raise
    except Exception as error:
        raise ValueError(f"{path} could not be run: {type(error).__name__}: {error}") from error
    if not isinstance(declared, kind):
        raise ValueError(f"{path} must define `{name} = {kind.__name__}(...)`, got {type(declared).__name__}")
    return declared
