"""``atdiff shards cifar10``: from the binary version to shards of the same pixels."""

import sys
from pathlib import Path

import numpy as np
import pytest
from test_cifar import NAMES, folder

from atdiff_core.data.cifar import cifar10
from atdiff_core.data.stream import open_shards
from pipeline import cli

__all__ = ["folder"]  # A fixture.


def test_it_writes_colour_shards_that_hold_the_same_pixels(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "shards"
    monkeypatch.setattr(sys, "argv", ["atdiff", "shards", "cifar10", str(folder), "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    shards = open_shards(out / "32px")
    index = shards.index
    assert (index.image_channels, index.num_samples, list(index.classes)) == (3, 10, NAMES)
    written = next(shards.batches(seed=0, batch_size=10)).content
    wanted = [np.asarray(sample.image) for sample in cifar10(folder)]
    read_back = sorted(image.numpy().tobytes() for image in written)
    assert read_back == sorted(image.tobytes() for image in wanted)
