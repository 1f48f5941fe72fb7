"""Fashion-MNIST at 16 pixels: Free-AT in l1, l2 and l-infinity at one amplitude and equal passes.

    atdiff compare search_spaces/norms.py

Every arm has the same radius and the same step, as amplitudes per element: what ||delta||_1 / D is
in one norm, ||delta||_2 / sqrt(D) and ||delta||_inf are in the others. Equal amplitudes are not equal
perturbations (||delta||_1 / D <= ||delta||_2 / sqrt(D) <= ||delta||_inf), so each norm has a random
control of its own size. Costs 512 kpass for the base model and 13 for each of 24 trials.
"""

from atdiff_core.balls import Ball, L1Ball, L2Ball, LInfBall
from atdiff_core.perturbations import FreeAT, RandomPerturbation
from search_spaces.comparison import Arm
from search_spaces.fashion_arms import comparison as fashion_arms
from search_spaces.fashion_arms import controls, seen

RADIUS = 0.1
REPLAYS = 3
STEP = RADIUS / (REPLAYS - 1)


def pair(ball: Ball) -> tuple[Arm, Arm]:
    """Free-AT in a norm, and the random control of the same replays and sizes."""
    random = RandomPerturbation(ball=ball, num_replays=REPLAYS, step_size=STEP)
    attack = FreeAT(ball=ball, num_replays=REPLAYS, step_size=STEP)
    return (
        Arm(name=f"random-{ball.norm}", objective=seen, perturbation=random, reference="replay"),
        Arm(name=f"free-at-{ball.norm}", objective=seen, perturbation=attack, reference=f"random-{ball.norm}"),
    )


plain, replay, _ = controls
comparison = fashion_arms.but(
    name="norms",
    arms=(
        plain,
        replay,
        *pair(L1Ball(radius=RADIUS)),
        *pair(L2Ball(radius=RADIUS)),
        *pair(LInfBall(radius=RADIUS)),
    ),
)
