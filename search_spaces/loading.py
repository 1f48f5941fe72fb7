"""Declarations are Python files that define one name."""

import runpy
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from atdiff_core.config import Config

Declaration = TypeVar("Declaration", bound=Config)


def load_declared(path: Path, name: str, kind: type[Declaration]) -> Declaration:
    """What a Python file declares under ``name``.

    Raises:
        ValueError: The file is missing, fails, or defines nothing of that kind under that name.
    """
    declared = definitions(path, kind.__name__.lower()).get(name)
    if not isinstance(declared, kind):
        raise ValueError(f"{path} must define `{name} = {kind.__name__}(...)`, got {type(declared).__name__}")
    return declared


def definitions(path: Path, what: str) -> dict[str, Any]:
    """Everything that a Python file defines, by name.

    Args:
        what: What is looked for there, for the message.

    Raises:
        ValueError: The file is missing, or fails.
    """
    if not path.is_file():
        raise ValueError(f"there is no {what} at {path}")
    try:
        return runpy.run_path(str(path))
    except ValidationError:
        raise
    except Exception as error:
        raise ValueError(f"{path} could not be run: {type(error).__name__}: {error}") from error
