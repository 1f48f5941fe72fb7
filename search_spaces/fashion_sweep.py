"""Fashion-MNIST at 8, 10, 12 and 16 pixels: how strong Free-AT must be, in l2 and in l-infinity.

    atdiff shards fashion-mnist /usr/share/datasets/fashion-mnist --out data/fashion --resolutions 8,10,12,16
    atdiff plan search_spaces/fashion_sweep.py --cpus 1
    atdiff sweep search_spaces/fashion_sweep.py --cpus 1

The sweep is to test the law, so no resolution tells another where to look, and the points are Sobol's: of
the sixteen at a resolution each norm gets eight, one in every eighth of the range. With reach 1 and K = 3
both norms end at the same root mean square, eta, so one range serves both. What it cost and found is in
docs/fashion-sweep.md.
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
    name="fashion-sweep",
    shards="data/fashion",
    ladder=(8, 10, 12, 16),
    predict_at=28,
    network=preset("digits", resolution=16, image_channels=1),
    objective=Denoising(noise=NoiseSchedule(kind="cosine"), attack_sees_target=True),
    pretraining=Phase(
        budget_kpass=20.48,
        optimization=Optimization(learning_rate=2e-3, decay="linear", warmup_kpass=2.56, ema_half_life_kpass=2),
    ),
    finetuning=Phase(
        budget_kpass=1.536,
        optimization=Optimization(learning_rate=6e-4, decay="linear", ema_half_life_kpass=0.4),
    ),
    domains=ReachDomains(
        eta=log_range(0.01, 1.0),
        num_replays=choice(3),
        reach=choice(1.0),
        norm=choice("l2", "linf"),
    ),
    evaluation=EvaluationConfig(
        samples=128, reference=2_000, samplers=(Sampler(kind="ddim", nfe=10), Sampler(kind="ddim", nfe=5))
    ),
    trials=16,
    searcher="sobol",
    transfer=False,
    stopping=Stopping(rung=0.5, keep=0.75),
    replication=Replication(leaders=1, seeds=2),
)
