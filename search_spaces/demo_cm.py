"""The demo for consistency models: how strong must adversarial distillation be, at 8, 12 and 16 pixels?

    atdiff shards demo --out data/mnist5k
    atdiff sweep search_spaces/demo_cm.py

The base model of a resolution is an EDM denoiser; every trial distils it into a consistency model
that starts at its weights, under Free-AT on the student's input, and is judged in one step and in
two. Strengths are in units of the noise, so that one number serves all noise levels. A
distillation step counts 2 passes (teacher 2/3, target 1/3, student 1), one of three replays 1.6.
"""

from atdiff_core.karras import KarrasNoise
from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.objectives.consistency import ConsistencyDistillation
from atdiff_core.objectives.discretisation import FixedLevels
from atdiff_core.objectives.edm import EDM
from atdiff_core.objectives.image_distances import PseudoHuber
from atdiff_core.optimization import Optimization
from atdiff_core.samplers import Sampler
from search_spaces.demo import space as demo
from search_spaces.domains import ReachDomains, choice, log_range
from search_spaces.space import Phase, TeacherPhase

distillation = ConsistencyDistillation(
    noise=KarrasNoise(kind="consistency", num_levels=18),
    discretisation=FixedLevels(decay=0.95),
    distance=PseudoHuber(c=0.03),
    perturbed="student",
    unit="noise",
)
teacher = EDM(noise=KarrasNoise(kind="edm"))

space = demo.but(
    name="demo-cm",
    objective=distillation,
    pretraining=TeacherPhase(
        objective=teacher,
        budget_kpass=demo.pretraining.budget_kpass,
        optimization=demo.pretraining.optimization,
    ),
    finetuning=Phase(
        budget_kpass=32,
        optimization=Optimization(learning_rate=5e-4, decay="linear", ema_half_life_kpass=2),
    ),
    domains=ReachDomains(
        eta=log_range(0.003, 0.3),
        num_replays=choice(3),
        reach=choice(1.0, 2.0),
        norm=choice("l2"),
    ),
    evaluation=EvaluationConfig(
        samples=256,
        samplers=(Sampler(kind="cm", nfe=1), Sampler(kind="cm", nfe=2), Sampler(kind="edm_euler", nfe=18)),
    ),
)
