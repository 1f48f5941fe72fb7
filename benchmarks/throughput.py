"""Images a second of one training step: ``python -m benchmarks.throughput --preset adm_imagenet64 --device cuda``.

Every combination of precision, memory layout and compilation that the device has use for, one
after the other on one network, with the share of the device's peak that the arithmetic uses (MFU)
where ``--peak-tflops`` gives that peak for bf16 (989 for an H200 without sparsity).
"""

import argparse
import time

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from atdiff_core.devices import chosen_device
from atdiff_core.minibatch import Minibatch
from atdiff_core.networks import PRESETS, preset
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import Unperturbed
from atdiff_core.randomness import Randomness
from atdiff_core.train_config import DTYPES, Precision
from atdiff_core.train_state import Execution
from benchmarks.measuring import machine_line

SETTINGS: list[tuple[Precision, bool, bool]] = [
    ("float32", False, False), ("bf16", False, False), ("bf16", True, False), ("bf16", True, True),
]  # fmt: skip


def measured(arguments: argparse.Namespace, precision: Precision, channels_last: bool, compiled: bool) -> list[float]:
    """Images a second, peak memory in GiB, and 10¹² floating-point operations an image."""
    device, size = arguments.device, arguments.batch
    channels = 1 if arguments.preset == "digits" else 3
    config = preset(arguments.preset, resolution=arguments.resolution, image_channels=channels)
    execution = Execution(device=device, channels_last=channels_last, compile=compiled)
    network = execution.prepared(config.build())
    objective = Denoising(variance="learned" if config.learned_variance else "fixed")
    optimizer = Optimization().optimizer(network)
    randomness = Randomness(0, range(size))
    images = torch.rand(size, channels, arguments.resolution, arguments.resolution, device=device) * 2 - 1
    labels = torch.zeros(size, dtype=torch.int64, device=device)
    condition = {"labels": labels} if config.num_classes else {}

    def step() -> None:
        draw = objective.draw(images, randomness, condition=condition)
        with torch.autocast(torch.device(device).type, DTYPES[precision], enabled=precision != "float32"):
            minibatch = Minibatch.whole(lambda delta: objective.loss(network, draw, delta), size)
            for _ in Unperturbed().replays(minibatch, draw.noisy, randomness):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    def synchronised() -> float:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    operations = float("nan")  # The counter cannot see into compiled code; the first row's figure holds.
    if not compiled:
        with FlopCounterMode(display=False) as counter:
            step()
        operations = counter.get_total_flops() / size / 1e12
    for _ in range(3):
        step()
    began = synchronised()
    for _ in range(arguments.steps):
        step()
    seconds = synchronised() - began
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.device(device).type == "cuda" else float("nan")
    return [size * arguments.steps / seconds, peak, operations]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=list(PRESETS), default="digits")
    parser.add_argument("--resolution", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--peak-tflops", type=float, default=float("nan"))
    arguments = parser.parse_args()
    arguments.device = chosen_device(arguments.device)
    on_gpu = torch.device(arguments.device).type == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else machine_line()
    table = Table("precision", "channels_last", "compiled", "images/s", "ratio", "peak GiB", "MFU", title=name)
    settings = SETTINGS if on_gpu else SETTINGS[:1]
    results = [measured(arguments, *setting) for setting in settings]
    first, _, operations = results[0]
    for (precision, channels_last, compiled), (rate, peak, _) in zip(settings, results, strict=True):
        share = rate * operations / arguments.peak_tflops
        row = (precision, str(channels_last), str(compiled), f"{rate:.1f}", f"{rate / first:.2f}", f"{peak:.1f}")
        table.add_row(*row, f"{share:.3f}")
    Console(width=120).print(table)
    print(f"throughput: last row / first row = {results[-1][0] / first:.2f} (no goal on a CPU)")


if __name__ == "__main__":
    main()
