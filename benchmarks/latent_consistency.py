"""Cost of adversarial latent consistency distillation, and LoRA's memory: ``python -m benchmarks.latent_consistency``.

A plain step counts 2 passes: teacher with and without the prompt 2/3, target 1/3, student 1. The teacher is
asked once for all replays of a minibatch, so that K of them cost less than K plain steps; the count is
what budgets go by. Beside the clock stand the floating-point operations, which do not depend on the
machine. Memory is counted in tensors: weights, gradients, Adam's two moments, the average and the
target, of this network and, without allocating it, of Stable Diffusion 1's.
"""

from collections.abc import Callable
from copy import deepcopy

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from atdiff_core.balls import L2Ball
from atdiff_core.lora import adapt
from atdiff_core.minibatch import Minibatch
from atdiff_core.objectives.latent_consistency import LatentConsistencyDistillation
from atdiff_core.objectives.objective import Companions, Teacher
from atdiff_core.perturbations import PGD, FreeAT, Perturbation, Unperturbed
from atdiff_core.randomness import Randomness
from atdiff_core.text_networks import TextUNet, text_preset
from atdiff_core.train_config import TrainConfig
from atdiff_core.train_state import TrainState
from benchmarks.consistency import operations
from benchmarks.measuring import interleaved, machine_line, ratio

ROUNDS, BATCH, TOKENS, RANKS = 15, 16, 32, (4, 64)
BALL = L2Ball(radius=0.03)
NETWORK = text_preset("text_tiny")
STUDENT = LatentConsistencyDistillation()
SOLVER = STUDENT.but(perturbed="solver")
FREE_AT, TWO_STEPS = FreeAT(ball=BALL, num_replays=3, step_size=0.015), PGD(ball=BALL, num_steps=2, step_size=0.015)
ARMS: dict[str, tuple[LatentConsistencyDistillation, Perturbation]] = {
    "plain": (STUDENT, Unperturbed()),
    "replay control, K = 3": (STUDENT, Unperturbed(num_replays=3)),
    "Free-AT on the student, K = 3": (STUDENT, FREE_AT),
    "Free-AT on the solver, K = 3": (SOLVER, FREE_AT),
    "PGD on the student, K = 2": (STUDENT, TWO_STEPS),
    "PGD on the solver, K = 2": (SOLVER, TWO_STEPS),
}


def declared(objective: LatentConsistencyDistillation, perturbation: Perturbation) -> TrainConfig:
    return TrainConfig(
        network=NETWORK, objective=objective, perturbation=perturbation, dataset="", prompts="given", teacher="given",
        batch_size=BATCH, budget_kpass=1000,
    )  # fmt: skip


def minibatch_step(objective: LatentConsistencyDistillation, perturbation: Perturbation) -> Callable[[], None]:
    """Everything the trainer does with one minibatch, on a student of its own."""
    network = NETWORK.fitting(embeds_guidance=False, adapts=False).build(seed=1)
    state = TrainState.fresh(declared(objective, perturbation), teacher=Teacher(network, objective.noise.schedule))
    images = torch.randn(BATCH, NETWORK.image_channels, NETWORK.resolution, NETWORK.resolution)
    prompt, empty = torch.randn(BATCH, TOKENS, NETWORK.prompt_width), torch.randn(1, TOKENS, NETWORK.prompt_width)
    companions = Companions(state.teacher, state.target, {"prompt": empty})
    randomness = Randomness(0, range(BATCH))

    def step() -> None:
        at_work = objective.beside(companions, progress=0.0)
        draw = at_work.draw(images, randomness, condition={"prompt": prompt})
        minibatch = Minibatch.whole(lambda delta: at_work.loss(state.network, draw, delta), BATCH)
        for _ in perturbation.replays(minibatch, draw.noisy, randomness):
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            state.average.update_parameters(state.network)
            state.average_target(objective.target_decay(0.0))

    return step


def state_bytes(shape: TextUNet) -> int:
    """Of a student in training, without its activations and its teacher; nothing is allocated."""
    with torch.device("meta"):
        network = shape.build()
        if shape.lora_rank:
            adapt(network, shape.lora_rank, seed=0)
        held: list[nn.Module] = [network, deepcopy(network), deepcopy(network)]
    weights = {id(weight): weight for each in held for weight in each.parameters()}
    learning = [weight for weight in network.parameters() if weight.requires_grad]
    return sum(weight.nbytes for weight in weights.values()) + 3 * sum(weight.nbytes for weight in learning)


def main() -> None:
    torch.set_num_threads(1)
    steps = {name: minibatch_step(objective, scheme) for name, (objective, scheme) in ARMS.items()}
    counts = {name: operations(step) for name, step in steps.items()}
    seconds = interleaved(steps, rounds=ROUNDS)
    head = ("arm", "plain steps (quartiles)", "passes", "operations", "time / passes")
    table = Table(*head, title=machine_line())
    lines = []
    plain = declared(*ARMS["plain"]).kpass_per_minibatch
    for name, arm in ARMS.items():
        middle, low, high = ratio(seconds, name, "plain")
        counted, done = declared(*arm).kpass_per_minibatch / plain, counts[name] / counts["plain"]
        shown = f"{middle:.3f} ({low:.3f} to {high:.3f})"
        table.add_row(name, shown, f"{counted:.3f}", f"{done:.3f}", f"{middle / counted:.3f}")
        if name != "plain":
            lines.append(f"latent consistency: operations / passes, {name} = {done / counted:.3f} (goal <= 1.05)")
            lines.append(f"latent consistency: time / passes, {name} = {middle / counted:.3f} (goal <= 1.25)")
    Console(width=120).print(table)
    print("\n".join(lines))
    for name in ("text_tiny", "sd15"):
        whole = state_bytes(text_preset(name))
        for rank in RANKS:
            part = state_bytes(text_preset(name).but(lora_rank=rank))
            print(
                f"memory: {name}, LoRA of rank {rank} / full student = {part / whole:.3f} "
                f"({part / 2**20:,.0f} of {whole / 2**20:,.0f} MiB)"
            )


if __name__ == "__main__":
    main()
