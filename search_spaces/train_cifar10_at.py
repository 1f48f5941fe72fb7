"""AT_Diff's CIFAR-10 run for ``atdiff train``: 200,000 minibatches of adversarial fine-tuning.

    atdiff shards cifar10 cifar-10-batches-bin --out data/cifar10 --resolutions 32
    atdiff import adm model250000.pt --preset adm_cifar10 --out models/adm_cifar10
    atdiff train search_spaces/train_cifar10_at.py --shards data/cifar10/32px --start models/adm_cifar10 \\
        --out runs/cifar10_at

The settings are those of the authors' released script (Wang et al., arXiv:2502.17099): ADM's
network for CIFAR-10, cosine schedule, hybrid objective, loss-second-moment timesteps, Free-AT in
l2 with K = 3 and raw step 0.1, whose projection radius (0.1 per element) is never reached,
delta blind to the moving target, AdamW at 1e-4, batch 128, EMA 0.9999, fp16, mirrored images.
The start is an ADM trained for 250,000 steps, which ``train_cifar10_base.py`` makes.
Cost: 200,000 x 3 x 128 = 76,800 kpass.
"""

import math
from typing import Any

from atdiff_core.balls import L2Ball
from atdiff_core.epsilon_scaling import EpsilonScaling
from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.networks import preset
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import FreeAT
from atdiff_core.samplers import Sampler
from atdiff_core.timesteps import LossSecondMoment

num_replays, batch_size = 3, 128
dimension = 3 * 32**2
step_size = 0.1 / math.sqrt(dimension)  # alpha_raw = 0.1, as an amplitude per element.
ema_half_life_kpass = batch_size / 1000 * math.log(0.5) / math.log(0.9999)
objective = Denoising(
    noise=NoiseSchedule(kind="cosine"), timesteps=LossSecondMoment(), variance="learned", attack_sees_target=False
)

nfes = (10, 5, 8, 20, 50)
scaled = EpsilonScaling(constant=1.017)
evaluation = EvaluationConfig(
    features="inception",
    distance="frechet",
    samples=50_000,
    samplers=(
        *(Sampler(kind="iddpm", nfe=nfe) for nfe in nfes),
        *(Sampler(kind="iddpm", nfe=nfe, epsilon_scaling=scaled) for nfe in nfes),
        *(Sampler(kind="ddim", nfe=nfe) for nfe in nfes),
        *(Sampler(kind="dpmpp_2m", nfe=nfe, spacing="log_snr") for nfe in nfes),
    ),
    full=True,
)
train: dict[str, Any] = {
    "network": preset("adm_cifar10", resolution=32, image_channels=3),
    "objective": objective,
    "perturbation": FreeAT(ball=L2Ball(radius=0.1), num_replays=num_replays, step_size=step_size),
    "optimization": Optimization(learning_rate=1e-4, ema_half_life_kpass=ema_half_life_kpass),
    "precision": "fp16",
    "flip": True,
    "batch_size": batch_size,
    "budget_kpass": 200_000 * num_replays * batch_size / 1000,
    "seed": 42,
}
config = {"train": train, "evaluation": evaluation}
