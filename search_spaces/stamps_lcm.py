"""Latent consistency distillation of the stamps' teacher, with and without a perturbation.

    atdiff compare search_spaces/stamps_lcm.py

The teacher is that of ``train_stamps_teacher.py``, where the commands before this one stand. Every arm
distils it from its own weights, at exactly equal passes (the budget is a multiple of every arm's
minibatch). Student and solver arms have the same amplitude, in units of the noise; the random control has it too.
Costs 17.92 kpass for each of 15 trials.
"""

from atdiff_core.balls import L2Ball
from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.objectives.latent_consistency import LatentConsistencyDistillation
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import FreeAT, RandomPerturbation, Unperturbed
from atdiff_core.samplers import Sampler
from atdiff_core.text_networks import text_preset
from search_spaces.comparison import Arm, Comparison, Pretrained
from search_spaces.space import Phase

teacher = Pretrained(snapshot="runs/stamps_teacher/snapshot")
student = LatentConsistencyDistillation(w_min=1.0, w_max=5.0, unit="noise")
solver = student.but(perturbed="solver")
ball = L2Ball(radius=0.03)
attack = FreeAT(ball=ball, num_replays=3, step_size=ball.radius / 2)

comparison = Comparison(
    name="stamps-lcm",
    shards="data/stamps_latents",
    prompts="data/stamps_prompts",
    network=text_preset("text_tiny"),
    objective=Denoising(noise=NoiseSchedule(kind="scaled_linear")),
    teacher=teacher,
    pretraining=teacher,
    finetuning=Phase(
        budget_kpass=17.92,
        optimization=Optimization(learning_rate=1e-3, decay="linear", warmup_kpass=1, ema_half_life_kpass=1),
    ),
    batch_size=32,
    arms=(
        Arm(name="plain", objective=student, perturbation=Unperturbed()),
        Arm(name="replay", objective=student, perturbation=Unperturbed(num_replays=3)),
        Arm(
            name="random",
            objective=student,
            perturbation=RandomPerturbation(ball=ball, num_replays=3, step_size=attack.step_size),
            reference="replay",
        ),
        Arm(name="free-at-student", objective=student, perturbation=attack, reference="replay"),
        Arm(name="free-at-solver", objective=solver, perturbation=attack, reference="replay"),
    ),
    seeds=3,
    evaluation=EvaluationConfig(
        samples=256, samplers=tuple(Sampler(kind="lcm", nfe=nfe, guidance=4.0) for nfe in (1, 2, 4))
    ),
)
