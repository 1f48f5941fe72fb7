"""Cost of adversarial consistency distillation in plain distillation steps: ``python -m benchmarks.consistency``.

A plain step counts 2 passes: teacher 2/3, target 1/3, student 1. Free-AT asks the teacher once for
all its replays, so that K of them cost less than K plain steps; the count is what budgets go by. Beside
the clock stand the floating-point operations, which do not depend on the machine.
"""

from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from atdiff_core.balls import L2Ball
from atdiff_core.karras import KarrasNoise
from atdiff_core.networks import preset
from atdiff_core.objectives.consistency import ConsistencyDistillation
from atdiff_core.objectives.objective import Teacher
from atdiff_core.perturbations import PGD, FreeAT, Perturbation, Unperturbed
from atdiff_core.train_config import TrainConfig
from benchmarks.measuring import interleaved, machine_line, ratio
from benchmarks.schemes import RESOLUTION, minibatch_step

ROUNDS = 25
BALL = L2Ball(radius=0.03)
STUDENT, SOLVER = ConsistencyDistillation(), ConsistencyDistillation(perturbed="solver")
FREE_AT, TWO_STEPS = FreeAT(ball=BALL, num_replays=3, step_size=0.015), PGD(ball=BALL, num_steps=2, step_size=0.015)
ARMS: dict[str, tuple[ConsistencyDistillation, Perturbation]] = {
    "plain": (STUDENT, Unperturbed()),
    "replay control, K = 3": (STUDENT, Unperturbed(num_replays=3)),
    "Free-AT on the student, K = 3": (STUDENT, FREE_AT),
    "Free-AT on the solver, K = 3": (SOLVER, FREE_AT),
    "PGD on the student, K = 2": (STUDENT, TWO_STEPS),
    "PGD on the solver, K = 2": (SOLVER, TWO_STEPS),
}


def passes(objective: ConsistencyDistillation, perturbation: Perturbation) -> float:
    """Forward-backwards per sample of a minibatch, as budgets count them."""
    config = TrainConfig(
        network=preset("digits", resolution=RESOLUTION), objective=objective, perturbation=perturbation, dataset="",
        teacher="given", batch_size=1000, budget_kpass=1000,
    )  # fmt: skip
    return config.kpass_per_minibatch


def operations(step: Callable[[], None]) -> int:
    """Floating-point operations of one minibatch, counted."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def main() -> None:
    torch.set_num_threads(1)
    teacher = Teacher(preset("digits", resolution=RESOLUTION, image_channels=1).build(seed=1), KarrasNoise(kind="edm"))
    steps = {name: minibatch_step(objective, scheme, teacher) for name, (objective, scheme) in ARMS.items()}
    counts = {name: operations(step) for name, step in steps.items()}
    seconds = interleaved(steps, rounds=ROUNDS)
    head = ("arm", "plain steps (quartiles)", "passes", "operations", "time / passes")
    table = Table(*head, title=machine_line())
    lines = []
    for name, (objective, scheme) in ARMS.items():
        middle, low, high = ratio(seconds, name, "plain")
        counted = passes(objective, scheme) / passes(*ARMS["plain"])
        done = counts[name] / counts["plain"]
        row = (
            name,
            f"{middle:.3f} ({low:.3f} to {high:.3f})",
            f"{counted:.3f}",
            f"{done:.3f}",
            f"{middle / counted:.3f}",
        )
        table.add_row(*row)
        if name != "plain":
            lines.append(f"consistency: operations / passes, {name} = {done / counted:.3f} (goal <= 1.05)")
            lines.append(f"consistency: time / passes, {name} = {middle / counted:.3f} (goal <= 1.25)")
    Console(width=120).print(table)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
