"""Lets a CUDA build of torchvision import beside a CPU build of torch.

On a CPU machine the package index may offer torch built for the CPU and torchvision built for
CUDA. torchvision's compiled library then does not load, and its Python part fails at import
because it describes two operators that nobody declared. Declaring them is enough for
transforms, datasets, models and ``make_grid``; the compiled codecs and ``ops.nms`` stay absent.

The guard waits on the import path and acts only when torchvision is first asked for, so that
``import atdiff_core`` costs nothing. Where the two builds agree it does nothing at all.
"""

import importlib.metadata
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_MISSING_OPERATORS = ("torchvision::nms", "torchvision::qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class _TorchvisionGuard(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_missing_operators()
        return None  # The ordinary finders go on to import it.


def install() -> None:
    """Put the guard in front of the import path, once per process."""
    waiting = any(isinstance(finder, _TorchvisionGuard) for finder in sys.meta_path)
    if not waiting and "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _TorchvisionGuard())


def _declare_missing_operators() -> None:
    import torch

    try:
        built_for_cuda = "+cu" in _torchvision_build()
    except importlib.metadata.PackageNotFoundError:
        return
    if torch.version.cuda is None and built_for_cuda:
        for operator in _MISSING_OPERATORS:
            torch.library.define(operator, _SCHEMA)


def _torchvision_build() -> str:
    """The version string in ``torchvision/version.py`` with its local part, say ``0.28.0+cu130``."""
    for file in importlib.metadata.files("torchvision") or ():
        if file.as_posix() == "torchvision/version.py":
            return file.read_text().split("\n", 1)[0]
    return importlib.metadata.version("torchvision")
