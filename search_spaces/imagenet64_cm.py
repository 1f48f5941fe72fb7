"""ImageNet at 64 pixels: adversarial consistency distillation of the public EDM teacher.

    atdiff shards imagenet imagenet/train --out data/imagenet --resolutions 64
    atdiff import adm edm_imagenet64_ema.pt --preset adm_imagenet64 --no-learned-variance --noise edm \\
        --out models/edm_imagenet64
    atdiff compare search_spaces/imagenet64_cm.py

Levels, solver, target decay, learning rate and metric are those of consistency distillation with
l2 (Song et al., arXiv:2303.01469, Appendix C; batch 256 here, 2048 there). AT_Diff states no
settings for consistency models; the arms perturb either the student's input or the solver's output at
amplitudes around the measured error of the solver (``atdiff solver-error models/edm_imagenet64``),
each K with its replay and random control. Every student starts at the teacher's weights. Costs 9 x 3
trials of 20,480 kpass.
"""

from itertools import product

from atdiff_core.balls import L2Ball
from atdiff_core.karras import KarrasNoise
from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.networks import preset
from atdiff_core.objectives.consistency import ConsistencyDistillation
from atdiff_core.objectives.discretisation import FixedLevels
from atdiff_core.objectives.edm import EDM
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import FreeAT, RandomPerturbation, Unperturbed
from atdiff_core.samplers import Sampler
from search_spaces.comparison import Arm, Comparison, Pretrained
from search_spaces.space import Phase

RADII, REPLAYS = (0.01, 0.03, 0.1), 3
student = ConsistencyDistillation(
    noise=KarrasNoise(kind="consistency", num_levels=40),
    discretisation=FixedLevels(decay=0.95),
    perturbed="student",
    unit="noise",
)
solver = student.but(perturbed="solver")


def free_at(radius: float) -> FreeAT:
    """The boundary is reached by the last step, from which the last replay learns."""
    return FreeAT(ball=L2Ball(radius=radius), num_replays=REPLAYS, step_size=radius / (REPLAYS - 1))


attacks = tuple(
    Arm(
        name=f"{objective.perturbed}-eta{radius:g}",
        objective=objective,
        perturbation=free_at(radius),
        reference="replay",
    )
    for objective, radius in product((student, solver), RADII)
)
comparison = Comparison(
    name="imagenet64-cm",
    shards="data/imagenet",
    network=preset("adm_imagenet64", resolution=64, image_channels=3).but(learned_variance=False),
    objective=EDM(noise=KarrasNoise(kind="edm")),
    pretraining=Pretrained(snapshot="models/edm_imagenet64"),
    finetuning=Phase(budget_kpass=20_480, optimization=Optimization(learning_rate=8e-6, ema_half_life_kpass=2_000)),
    batch_size=256,
    precision="bf16",
    arms=(
        Arm(name="plain", objective=student, perturbation=Unperturbed()),
        Arm(name="replay", objective=student, perturbation=Unperturbed(num_replays=REPLAYS)),
        Arm(
            name="random-eta0.03",
            objective=student,
            perturbation=RandomPerturbation(ball=L2Ball(radius=0.03), num_replays=REPLAYS, step_size=0.015),
            reference="replay",
        ),
        *attacks,
    ),
    seeds=3,
    evaluation=EvaluationConfig(
        features="inception",
        distance="frechet",
        samples=10_000,
        samplers=tuple(Sampler(kind="cm", nfe=nfe) for nfe in (1, 2, 4)),
    ),
)
