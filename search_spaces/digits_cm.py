"""Digits at 8 pixels: adversarial consistency distillation against its controls.

    atdiff shards demo --out data/mnist5k
    atdiff train search_spaces/train_digits_edm.py --shards data/mnist5k/8px --out runs/digits_teacher
    atdiff compare search_spaces/digits_cm.py

The base model is the plain distillation of that teacher; every arm goes on from it with another
scheme at exactly equal passes (the budget is a multiple of every arm's minibatch). Student and solver
arms have the same amplitude, in units of the noise; the random control has it too. Two more arms perturb
the student by a third and a tenth of it.
"""

from atdiff_core.balls import L2Ball
from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.networks import preset
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import FreeAT, RandomPerturbation, Unperturbed
from atdiff_core.samplers import Sampler
from search_spaces.comparison import Arm, Comparison, Pretrained
from search_spaces.demo_cm import distillation
from search_spaces.space import Phase, StudentPhase

student, solver = distillation, distillation.but(perturbed="solver")
ball = L2Ball(radius=0.03)


def free_at(radius: float) -> FreeAT:
    """Three replays, half the radius a step."""
    return FreeAT(ball=L2Ball(radius=radius), num_replays=3, step_size=radius / 2)


comparison = Comparison(
    name="digits-cm",
    shards="data/mnist5k",
    network=preset("digits", resolution=8, image_channels=1),
    objective=student,
    teacher=Pretrained(snapshot="runs/digits_teacher/snapshot"),
    pretraining=StudentPhase(
        budget_kpass=448,
        optimization=Optimization(learning_rate=1e-3, decay="linear", warmup_kpass=6.4, ema_half_life_kpass=20),
    ),
    finetuning=Phase(
        budget_kpass=28.672,
        optimization=Optimization(learning_rate=5e-4, decay="linear", ema_half_life_kpass=4),
    ),
    arms=(
        Arm(name="plain", objective=student, perturbation=Unperturbed()),
        Arm(name="replay", objective=student, perturbation=Unperturbed(num_replays=3)),
        Arm(
            name="random",
            objective=student,
            perturbation=RandomPerturbation(ball=ball, num_replays=3, step_size=ball.radius / 2),
            reference="replay",
        ),
        Arm(name="free-at-student", objective=student, perturbation=free_at(ball.radius), reference="replay"),
        Arm(name="free-at-solver", objective=solver, perturbation=free_at(ball.radius), reference="replay"),
        Arm(name="a-third", objective=student, perturbation=free_at(0.01), reference="replay"),
        Arm(name="a-tenth", objective=student, perturbation=free_at(0.003), reference="replay"),
    ),
    seeds=3,
    evaluation=EvaluationConfig(
        samples=512, reference=2_000, samplers=(Sampler(kind="cm", nfe=1), Sampler(kind="cm", nfe=2))
    ),
)
