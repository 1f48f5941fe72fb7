"""Dirty data as a view: which samples, how dirty, and that nothing else changes."""

from itertools import islice

import numpy as np
import pytest
import torch

from atdiff_core.data.corruption import Clean, Corruption, GaussianNoise, Outliers, corrupted, is_corrupt
from atdiff_core.data.sources import ArraySource
from atdiff_core.data.stream import ShardSet, open_shards
from atdiff_core.data.writing import write_shards
from atdiff_core.train_config import TrainConfig
from atdiff_core.train_state import TrainState
from atdiff_core.trainer import train


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """20 images of 8 px, image n of grey n."""
    out = tmp_path_factory.mktemp("others")
    images = np.arange(20, dtype=np.uint8)[:, None, None].repeat(8, axis=1).repeat(8, axis=2)
    assert list(
        write_shards(
            ArraySource("grey", "CC0", ["grey"], images, np.zeros(20, dtype=np.uint8)), out, [8], image_channels=1
        )
    )
    return open_shards(out / "8px")


def seen(shards: ShardSet, corruption: Corruption, outliers: ShardSet | None = None) -> dict[int, torch.Tensor]:
    """Every image of an epoch as a network sees it, by number; the epochs that follow must agree."""
    found: dict[int, torch.Tensor] = {}
    for batch in islice(shards.batches(seed=0, batch_size=64), 8):
        for number, image in zip(batch.numbers, corrupted(batch, corruption, outliers), strict=True):
            assert number not in found or torch.equal(found[number], image)
            found[number] = image
    return found


def test_the_fraction_of_noisy_samples_is_the_one_asked_for() -> None:
    numbers = list(range(20_000))
    for fraction in (0.0, 0.1, 0.5, 0.9, 1.0):
        share = float(is_corrupt(GaussianNoise(fraction=fraction, sigma=0.1), numbers).double().mean())
        assert abs(share - fraction) <= 4 * (fraction * (1 - fraction) / len(numbers)) ** 0.5


def test_noise_has_its_size_and_stays_with_its_sample(digits_8px: ShardSet) -> None:
    clean = seen(digits_8px, Clean())
    corruption = GaussianNoise(fraction=0.5, sigma=0.2)
    noisy = seen(digits_8px, corruption)
    chosen = is_corrupt(corruption, list(clean)).tolist()
    noise = torch.stack([noisy[each] - clean[each] for each, is_one in zip(clean, chosen, strict=True) if is_one])
    assert all(torch.equal(noisy[each], clean[each]) for each, is_one in zip(clean, chosen, strict=True) if not is_one)
    assert noise.std() == pytest.approx(0.2, rel=0.05)
    assert noise.mean() == pytest.approx(0.0, abs=0.01)
    assert noisy[0].shape == clean[0].shape


def test_clipped_noise_stays_in_the_range_of_images(digits_8px: ShardSet) -> None:
    clipped = seen(digits_8px, GaussianNoise(fraction=0.9, sigma=0.5, clip=True))
    assert max(float(image.abs().max()) for image in clipped.values()) == 1.0


def test_another_seed_makes_other_samples_dirty() -> None:
    numbers = list(range(1000))
    one, other = (is_corrupt(GaussianNoise(fraction=0.5, sigma=1, seed=seed), numbers) for seed in (0, 1))
    assert 400 < int((one != other).sum()) < 600


def test_outliers_stand_in_place_of_the_samples_they_replace(digits_8px: ShardSet, others: ShardSet) -> None:
    clean = seen(digits_8px, Clean())
    corruption = Outliers(fraction=0.3, dataset=others.fingerprint)
    dirty = seen(digits_8px, corruption, others)
    greys = {round((float(image[0, 0, 0]) + 1) * 127.5) for image in others.samples_at(list(range(20)))}
    replaced = is_corrupt(corruption, list(clean)).tolist()
    values = []
    for number, is_one in zip(clean, replaced, strict=True):
        assert is_one or torch.equal(dirty[number], clean[number])
        if is_one:
            assert dirty[number].unique().numel() == 1
            values.append(round((float(dirty[number][0, 0, 0]) + 1) * 127.5))
    assert set(values) <= greys == set(range(20))
    assert len(set(values)) > 12


def test_an_outlier_set_that_does_not_fit_is_refused(
    digits_8px: ShardSet, tiny_config: TrainConfig, others: ShardSet
) -> None:
    config = tiny_config.but(corruption=Outliers(fraction=0.3, dataset=others.fingerprint))
    state = TrainState.fresh(config)
    with pytest.raises(ValueError, match="give that set too"):
        next(train(config, state, digits_8px))
    with pytest.raises(ValueError, match=f"from dataset {others.fingerprint[:12]}, got {digits_8px.fingerprint[:12]}"):
        next(train(config, state, digits_8px, outliers=digits_8px))
    assert next(train(config, state, digits_8px, outliers=others)).done


def test_corruption_is_part_of_a_run_and_changes_its_weights(digits_8px: ShardSet, tiny_config: TrainConfig) -> None:
    losses = {}
    for corruption in (Clean(), GaussianNoise(fraction=0.9, sigma=0.2), GaussianNoise(fraction=0.0, sigma=0.2)):
        config = tiny_config.but(corruption=corruption)
        (*_, last) = train(config, TrainState.fresh(config), digits_8px)
        losses[config.key] = last.loss
    clean, noisy, untouched = losses.values()
    assert clean == untouched != noisy
