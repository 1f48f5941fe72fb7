"""``atdiff shards cifar10``: from the binary version to shards of the same pixels."""

import sys
from pathlib import Path

import numpy as np
import pytest
from test_cifar import NAMES, folder

from atdiff_core.data.cifar import cifar10
from atdiff_core.data.decoding import decoded_shard
from atdiff_core.data.index import load_index
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
    index = load_index(out / "32px")
    assert (index.image_channels, index.num_samples, list(index.classes)) == (3, 10, NAMES)
    written = [image for shard in index.shards for image in decoded_shard(out / "32px", shard, index).images]
    wanted = [np.asarray(sample.image) for sample in cifar10(folder)]
    read_back = sorted(image.permute(1, 2, 0).numpy().tobytes() for image in written)
    assert read_back == sorted(image.tobytes() for image in wanted)
