"""The demo: 5,000 real digits at 8, 12 and 16 pixels, minutes on two CPU cores.

Every trial fine-tunes the base model of its resolution with Free-AT; what is searched is how
strong (eta) and with which reach. Ten trials a resolution carry no more: K and the norm are
fixed, `demo_norms.py` searches them too. Costs 192 kpass of pretraining and, with its controls,
some 0.26 M passes of fine-tuning.
"""

from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.networks import preset
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.optimization import Optimization
from atdiff_core.samplers import Sampler
from search_spaces.domains import ReachDomains, choice, log_range
from search_spaces.space import Phase, Replication, Space, Stopping

space = Space(
    name="demo",
    shards="data/mnist5k",
    ladder=(8, 12, 16),
    predict_at=32,
    network=preset("digits", resolution=8, image_channels=1),
    objective=Denoising(noise=NoiseSchedule(kind="cosine"), attack_sees_target=True),
    pretraining=Phase(
        budget_kpass=64,
        optimization=Optimization(learning_rate=2e-3, decay="linear", warmup_kpass=6.4, ema_half_life_kpass=4),
    ),
    finetuning=Phase(
        budget_kpass=4.608,
        optimization=Optimization(learning_rate=2e-4, decay="linear", ema_half_life_kpass=2),
    ),
    domains=ReachDomains(
        eta=log_range(0.05, 2.0),
        num_replays=choice(3),
        reach=choice(1.0, 2.0),
        norm=choice("linf"),
    ),
    evaluation=EvaluationConfig(
        samples=192,
        reference=2_000,
        samplers=(Sampler(kind="ddim", nfe=10), Sampler(kind="ddim", nfe=5), Sampler(kind="ddim", nfe=3)),
    ),
    trials=10,
    stopping=Stopping(rung=0.5, keep=0.75),
    replication=Replication(leaders=2, seeds=2),
)
