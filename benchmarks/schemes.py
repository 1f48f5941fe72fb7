"""Cost of the schemes in plain training steps: ``python -m benchmarks.schemes``.

Free-AT with K replays should cost K plain steps, PGD with K ascent steps 1 + 2K/3.
"""

from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from atdiff_core.balls import L2Ball
from atdiff_core.networks import preset
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import PGD, FreeAT, Perturbation, Unperturbed
from atdiff_core.randomness import Randomness
from benchmarks.measuring import interleaved, machine_line, ratio

RESOLUTION, BATCH, ROUNDS = 16, 64, 40
BALL = L2Ball(radius=0.01)
SCHEMES: dict[str, tuple[Perturbation, float, float]] = {
    "Free-AT, K = 2": (FreeAT(ball=BALL, num_replays=2, step_size=0.01), 2, 1.03),
    "Free-AT, K = 3": (FreeAT(ball=BALL, num_replays=3, step_size=0.005), 3, 1.03),
    "Free-AT, K = 5": (FreeAT(ball=BALL, num_replays=5, step_size=0.0025), 5, 1.03),
    "replay control, K = 3": (Unperturbed(num_replays=3), 3, 1.03),
    "PGD, K = 1": (PGD(ball=BALL, num_steps=1, step_size=0.01), 1 + 2 / 3, 1.10),
    "PGD, K = 3": (PGD(ball=BALL, num_steps=3, step_size=0.005), 1 + 2, 1.10),
}


def minibatch_step(perturbation: Perturbation) -> Callable[[], None]:
    """Everything the trainer does with one minibatch, on a network of its own."""
    network = preset("digits", resolution=RESOLUTION, image_channels=1).build()
    objective, optimization = Denoising(), Optimization()
    optimizer = optimization.optimizer(network)
    average = optimization.averaged(network, kpass_per_step=BATCH / 1000)
    images = torch.rand(BATCH, 1, RESOLUTION, RESOLUTION) * 2 - 1
    randomness = Randomness(0, range(BATCH))

    def step() -> None:
        draw = objective.draw(images, randomness)
        for _ in perturbation.replays(
            lambda delta: objective.loss(network, draw, delta), like=draw.noisy, randomness=randomness
        ):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average.update_parameters(network)

    return step


def main() -> None:
    torch.set_num_threads(1)
    arms = {"plain": minibatch_step(Unperturbed())}
    arms |= {name: minibatch_step(perturbation) for name, (perturbation, _, _) in SCHEMES.items()}
    seconds = interleaved(arms, rounds=ROUNDS)
    table = Table("scheme", "plain steps (quartiles)", "by count", "ratio", "goal", title=machine_line())
    worst = 0.0
    for name, (_, steps, goal) in SCHEMES.items():
        middle, low, high = ratio(seconds, name, "plain")
        table.add_row(
            name, f"{middle:.3f} ({low:.3f} to {high:.3f})", f"{steps:.3f}", f"{middle / steps:.3f}", f"{goal}"
        )
        worst = max(worst, middle / steps / goal)
    Console(width=120).print(table)
    free_at = ratio(seconds, "Free-AT, K = 3", "plain")[0] / 3
    pgd = ratio(seconds, "PGD, K = 3", "plain")[0] / 3
    print(f"schemes: PGD-3 / (1 + 2K/3) plain steps = {pgd:.3f} (goal <= 1.10)")
    print(f"schemes: Free-AT-3 / 3 plain steps = {free_at:.3f} (goal <= 1.03)")


if __name__ == "__main__":
    main()
