"""A teacher for ``atdiff train``: an EDM denoiser of digits, the one that ``digits_cm.py`` distils."""

from atdiff_core.karras import KarrasNoise
from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.networks import preset
from atdiff_core.objectives.edm import EDM
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import Unperturbed
from atdiff_core.samplers import Sampler

config = {
    "train": {
        "network": preset("digits", resolution=8, image_channels=1),
        "objective": EDM(noise=KarrasNoise(kind="edm")),
        "perturbation": Unperturbed(),
        "optimization": Optimization(learning_rate=2e-3, decay="linear", warmup_kpass=6.4, ema_half_life_kpass=20),
        "budget_kpass": 448,
    },
    "evaluation": EvaluationConfig(
        samples=256, samplers=(Sampler(kind="edm_dpmpp_2m", nfe=10), Sampler(kind="edm_euler", nfe=18))
    ),
}
