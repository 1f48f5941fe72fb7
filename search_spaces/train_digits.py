"""One run for ``atdiff train``: Free-AT on digits at 16 pixels.

The dataset and the starting point are filled in by the command line. Any field of
``atdiff_core.trainer.TrainConfig`` can be given.
"""

from atdiff_core.balls import L2Ball
from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.networks import preset
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import FreeAT

config = {
    "train": {
        "network": preset("digits", resolution=16, image_channels=1),
        "perturbation": FreeAT(ball=L2Ball(radius=0.01), num_replays=3, step_size=0.005),
        "optimization": Optimization(learning_rate=2e-3, decay="linear", warmup_kpass=6.4, ema_half_life_kpass=10),
        "budget_kpass": 96,
    },
    "evaluation": EvaluationConfig(samples=512),
}
