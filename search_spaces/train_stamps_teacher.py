"""A text-to-image teacher for two CPU cores: latents of Tux Paint's stamps, told their sentences.

    apt install tuxpaint-stamps-default
    atdiff shards stamps --out data/stamps
    atdiff pretrain autoencoder data/stamps/32px --out models/stamps_vae
    atdiff pretrain clip data/stamps/32px --out models/stamps_clip
    atdiff latents data/stamps/32px --autoencoder models/stamps_vae --out data/stamps_latents/8px
    atdiff prompts data/stamps/32px --encoder models/stamps_clip --out data/stamps_prompts
    atdiff train search_spaces/train_stamps_teacher.py --shards data/stamps_latents/8px \\
        --prompts data/stamps_prompts --out runs/stamps_teacher

The snapshot opens in diffusers' ``StableDiffusionPipeline``; ``stamps_lcm.py`` distils it. 1.1 M
parameters, 3,000 optimizer steps of a quarter of a second each on one core.
"""

from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import Unperturbed
from atdiff_core.samplers import Sampler
from atdiff_core.text_networks import text_preset

config = {
    "train": {
        "network": text_preset("text_tiny").but(guidance_width=0),
        "objective": Denoising(noise=NoiseSchedule(kind="scaled_linear")),
        "perturbation": Unperturbed(),
        "optimization": Optimization(learning_rate=1e-3, decay="linear", warmup_kpass=6.4, ema_half_life_kpass=5),
        "prompt_dropout": 0.1,
        "flip": False,  # A sentence may tell left from right.
        "budget_kpass": 96,
        "batch_size": 32,
    },
    "evaluation": EvaluationConfig(
        samples=256, samplers=(Sampler(kind="ddim", nfe=20, guidance=3.0), Sampler(kind="ddim", nfe=50, guidance=3.0))
    ),
}
