"""A CPU build of torch beside a CUDA build of torchvision, seen from fresh interpreters."""

import subprocess
import sys


def run(*lines: str) -> list[str]:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_core_costs_neither_torch_nor_torchvision() -> None:
    lines = run("import sys, atdiff_core", "print('torch' in sys.modules, 'torchvision' in sys.modules)")
    assert lines == ["False", "False"]


def test_transforms_and_diffusers_import_after_the_core() -> None:
    lines = run(
        "import atdiff_core",
        "import torchvision.transforms, diffusers",
        "from torchvision.utils import make_grid",
        "from diffusers import DDPMPipeline, UNet2DModel",
        "import torch",
        "print(tuple(torchvision.transforms.CenterCrop(2)(torch.zeros(1, 4, 4)).shape) == (1, 2, 2))",
    )
    assert lines == ["True"]


def test_installing_twice_adds_one_finder_and_none_once_torchvision_is_there() -> None:
    lines = run(
        "import sys, atdiff_core",
        "from atdiff_core import torchvision_guard as guard",
        "def waiting(): return sum(isinstance(each, guard._TorchvisionGuard) for each in sys.meta_path)",
        "guard.install(), guard.install()",
        "print(waiting())",
        "import torchvision",
        "print(waiting())",
        "guard.install()",
        "print(waiting())",
    )
    assert lines == ["1", "0", "0"]
