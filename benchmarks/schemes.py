"""Cost of the schemes in plain training steps: ``python -m benchmarks.schemes``.

Free-AT with K replays should cost K plain steps, PGD with K ascent steps 1 + 2K/3; PGD whose
ascent also takes the parameters' gradients, K + 1, is shown beside it. The equivariant objective
of AT-DM should cost its count of passes: two a descent, one for the sign step.
"""

import resource
from collections.abc import Callable, Iterator

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from atdiff_core.balls import L2Ball, LInfBall
from atdiff_core.minibatch import Minibatch
from atdiff_core.networks import preset
from atdiff_core.objectives import Objective
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.objectives.equivariant import Equivariant
from atdiff_core.objectives.objective import Teacher
from atdiff_core.perturbations import PGD, FreeAT, Perturbation, Replay, Unperturbed
from atdiff_core.randomness import Randomness
from atdiff_core.train_config import NO_TEACHER, TrainConfig
from atdiff_core.train_state import TrainState
from benchmarks.measuring import interleaved, machine_line, ratio

RESOLUTION, BATCH, ROUNDS = 16, 64, 40
BALL = L2Ball(radius=0.01)
SIGN_STEP = PGD(ball=LInfBall(radius=1), num_steps=1, step_size=1, start="random")


class NaivePGD(PGD):
    """PGD whose every ascent step takes the gradient of the parameters too, and throws it away."""

    def replays(self, minibatch: Minibatch, like: Tensor, randomness: Randomness) -> Iterator[Replay]:
        delta = torch.zeros_like(like)
        for _ in range(self.num_steps):
            moving = delta.clone().requires_grad_()
            minibatch.descend(moving)
            delta = self._climbed(delta, moving.grad)
        yield Replay(minibatch.descend(delta), None, delta)


PGD_SETTINGS = {"ball": BALL, "num_steps": 3, "step_size": 0.005}
SCHEMES: dict[str, tuple[Objective, Perturbation, float, float | None]] = {
    "Free-AT, K = 2": (Denoising(), FreeAT(ball=BALL, num_replays=2, step_size=0.01), 2, 1.03),
    "Free-AT, K = 3": (Denoising(), FreeAT(ball=BALL, num_replays=3, step_size=0.005), 3, 1.03),
    "Free-AT, K = 5": (Denoising(), FreeAT(ball=BALL, num_replays=5, step_size=0.0025), 5, 1.03),
    "replay control, K = 3": (Denoising(), Unperturbed(num_replays=3), 3, 1.03),
    "PGD, K = 1": (Denoising(), PGD(ball=BALL, num_steps=1, step_size=0.01), 1 + 2 / 3, 1.10),
    "PGD, K = 3": (Denoising(), PGD(**PGD_SETTINGS), 1 + 2, 1.10),
    "PGD, K = 3, parameter gradients too": (Denoising(), NaivePGD(**PGD_SETTINGS), 1 + 3, None),
    "equivariant, random": (Equivariant(), SIGN_STEP.but(num_steps=0), 2, None),
    "equivariant, adversarial": (Equivariant(), SIGN_STEP, 3, None),
}


def minibatch_step(
    objective: Objective, perturbation: Perturbation, teacher: Teacher | None = None
) -> Callable[[], None]:
    """Everything the trainer does with one minibatch, on a network of its own."""
    config = TrainConfig(
        network=preset("digits", resolution=RESOLUTION, image_channels=1), objective=objective,
        perturbation=perturbation, dataset="", teacher=NO_TEACHER if teacher is None else "given", budget_kpass=1000,
    )  # fmt: skip
    state = TrainState.fresh(config, teacher=teacher)
    network = state.network
    images = torch.rand(BATCH, 1, RESOLUTION, RESOLUTION) * 2 - 1
    randomness = Randomness(0, range(BATCH))

    def step() -> None:
        at_work = objective.beside(state.companions, progress=0.0)
        draw = at_work.draw(images, randomness)
        minibatch = Minibatch.whole(
            lambda delta: at_work.loss(network, draw, delta),
            BATCH,
            attack=None if objective.attack_is_loss else lambda delta: at_work.attack(network, draw, delta),
        )
        for _ in perturbation.replays(minibatch, draw.noisy, randomness):
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            state.average.update_parameters(network)
            if objective.keeps_target:
                state.average_target(objective.target_decay(0.0))

    return step


def main() -> None:
    torch.set_num_threads(1)
    arms = {"plain": minibatch_step(Denoising(), Unperturbed())}
    arms |= {name: minibatch_step(objective, scheme) for name, (objective, scheme, _, _) in SCHEMES.items()}
    seconds = interleaved(arms, rounds=ROUNDS)
    table = Table("scheme", "plain steps (quartiles)", "by count", "ratio", "goal", title=machine_line())
    for name, (_, _, steps, goal) in SCHEMES.items():
        middle, low, high = ratio(seconds, name, "plain")
        row = (name, f"{middle:.3f} ({low:.3f} to {high:.3f})", f"{steps:.3f}", f"{middle / steps:.3f}")
        table.add_row(*row, "" if goal is None else f"{goal}")
    Console(width=120).print(table)
    plain_ms = 1000 * sorted(seconds["plain"])[len(seconds["plain"]) // 2]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"plain step: {plain_ms:.0f} ms (this machine, this hour); peak memory of all arms together: {peak:.2f} GiB")
    free_at = ratio(seconds, "Free-AT, K = 3", "plain")[0] / 3
    pgd = ratio(seconds, "PGD, K = 3", "plain")[0] / 3
    equivariant = ratio(seconds, "equivariant, adversarial", "plain")[0]
    naive = ratio(seconds, "PGD, K = 3, parameter gradients too", "PGD, K = 3")[0]
    print(f"schemes: equivariant (adversarial) / plain step = {equivariant:.3f} (goal <= 3.1)")
    print(f"schemes: PGD-3 with parameter gradients / without = {naive:.3f}")
    print(f"schemes: PGD-3 / (1 + 2K/3) plain steps = {pgd:.3f} (goal <= 1.10)")
    print(f"schemes: Free-AT-3 / 3 plain steps = {free_at:.3f} (goal <= 1.03)")


if __name__ == "__main__":
    main()
