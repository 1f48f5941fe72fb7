"""Training from scratch on Fashion-MNIST: does a perturbation that grows slowly learn as fast as none?

    atdiff shards fashion-mnist /usr/share/datasets/fashion-mnist --out data/fashion --resolutions 16
    atdiff compare search_spaces/from_scratch_warmup.py

AT_Diff reports that AT from scratch is slower at first (Appendix G.2) and leaves a warm-up open.
Free-AT at full strength at once, and with a linear and a cosine warm-up over half of the passes,
against the replay control and plain training. Costs 15 trials of 192 kpass.
"""

from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import FreeAT, Unperturbed
from atdiff_core.train_config import StrengthWarmup
from search_spaces.comparison import Arm, Scratch
from search_spaces.fashion_arms import ball, seen, step
from search_spaces.fashion_arms import comparison as fashion_arms
from search_spaces.space import Phase

BUDGET_KPASS = 192
free_at = FreeAT(ball=ball, num_replays=3, step_size=step)
warm_ups = {
    "at-once": StrengthWarmup(),
    "linear": StrengthWarmup(kind="linear", kpass=BUDGET_KPASS / 2),
    "cosine": StrengthWarmup(kind="cosine", kpass=BUDGET_KPASS / 2),
}
comparison = fashion_arms.but(
    name="from-scratch-warmup",
    pretraining=Scratch(),
    finetuning=Phase(
        budget_kpass=BUDGET_KPASS,
        optimization=Optimization(learning_rate=2e-3, decay="linear", warmup_kpass=6.4, ema_half_life_kpass=20),
    ),
    arms=(
        Arm(name="plain", objective=seen, perturbation=Unperturbed()),
        Arm(name="replay", objective=seen, perturbation=Unperturbed(num_replays=3)),
        *(
            Arm(name=f"free-at-{name}", objective=seen, perturbation=free_at, strength=strength, reference="replay")
            for name, strength in warm_ups.items()
        ),
    ),
)
