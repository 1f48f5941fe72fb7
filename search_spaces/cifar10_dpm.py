"""CIFAR-10: quality against robustness over eta and K, for one imported ADM.

    atdiff shards cifar10 cifar-10-batches-bin --out data/cifar10 --resolutions 32
    atdiff import adm model250000.pt --preset adm_cifar10 --out models/adm_cifar10
    atdiff compare search_spaces/cifar10_dpm.py

The question that AT_Diff leaves open: how sensitive quality is to the strength. Free-AT in l2 with
the target seen, four radii by three K at equal passes, each K with its replay control; the page
draws FID against the loss under attack. The radii are amplitudes per element: the paper's raw
step 0.1 with K = 3 reaches 0.0036. Costs 17 x 3 trials of 1,920 kpass.
"""

from itertools import product

from atdiff_core.balls import L2Ball
from atdiff_core.metrics.robustness import Attack
from atdiff_core.networks import preset
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import FreeAT, Unperturbed
from search_spaces.comparison import Arm, Comparison, Pretrained
from search_spaces.space import Phase
from search_spaces.train_cifar10_at import batch_size, ema_half_life_kpass, evaluation, objective

RADII, REPLAYS = (0.001, 0.0036, 0.012, 0.04), (2, 3, 5)
seen = objective.but(attack_sees_target=True)
unseen = objective


def free_at(radius: float, replays: int) -> FreeAT:
    """The boundary is reached by the last step, from which the last replay learns."""
    return FreeAT(ball=L2Ball(radius=radius), num_replays=replays, step_size=radius / (replays - 1))


grid = tuple(
    Arm(name=f"eta{radius:g}-K{k}", objective=seen, perturbation=free_at(radius, k), reference=f"replay-K{k}")
    for radius, k in product(RADII, REPLAYS)
)
comparison = Comparison(
    name="cifar10-dpm",
    shards="data/cifar10",
    network=preset("adm_cifar10", resolution=32, image_channels=3),
    objective=seen,
    pretraining=Pretrained(snapshot="models/adm_cifar10"),
    finetuning=Phase(
        budget_kpass=1_920, optimization=Optimization(learning_rate=1e-4, ema_half_life_kpass=ema_half_life_kpass / 10)
    ),
    batch_size=batch_size,
    precision="fp16",
    flip=True,
    arms=(
        Arm(name="plain", objective=seen, perturbation=Unperturbed()),
        *(Arm(name=f"replay-K{k}", objective=seen, perturbation=Unperturbed(num_replays=k)) for k in REPLAYS),
        *grid,
        Arm(
            name="eta0.0036-K3-unseen",
            objective=unseen,
            perturbation=free_at(0.0036, 3),
            reference="replay-K3",
        ),
    ),
    seeds=3,
    evaluation=evaluation.but(
        samples=10_000, full=False, attacks=(Attack(ball=L2Ball(radius=0.0036)), Attack(ball=L2Ball(radius=0.04)))
    ),
)
