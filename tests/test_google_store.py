"""Sets at gs://, on an emulator of Google's object store."""

import socket
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch

from atdiff_core.data import shard_files
from atdiff_core.data.remote import Patience
from atdiff_core.data.sources import ArraySource
from atdiff_core.data.stream import open_shards
from atdiff_core.data.writing import write_shards

pytest.importorskip("gcsfs", reason="pip install 'atdiff[test]'")
emulator = pytest.importorskip("gcp_storage_emulator.server", reason="pip install 'atdiff[test]'")

PATIENCE = Patience(attempts=2, timeout_sec=5.0, first_delay_sec=0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 noisy images of 16 px in five shards."""
    out = tmp_path_factory.mktemp("set")
    images = np.random.default_rng(0).integers(0, 256, (60, 16, 16), dtype=np.uint8)
    source = ArraySource("noise", "CC0", ["a", "b"], images, np.arange(60, dtype=np.uint8) % 2)
    assert list(write_shards(source, out, [16], image_channels=1, samples_per_shard=12))
    return out / "16px"


@pytest.fixture(scope="module", autouse=True)
def _store(folder: Path) -> Iterator[None]:
    """The same set as ``gs://sets/noise/16px``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="sets")
    server.start()
    try:
        for file in folder.iterdir():
            query = urlencode({"uploadType": "media", "name": f"noise/16px/{file.name}"})
            address = f"http://127.0.0.1:{port}/upload/storage/v1/b/sets/o?{query}"
            urlopen(Request(address, data=file.read_bytes(), method="POST"), timeout=10).close()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
            yield
    finally:
        server.stop()


def test_two_epochs_come_as_from_the_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_files, "PIECE_BYTES", 4096)
    monkeypatch.setenv("ATDIFF_CACHE", str(tmp_path))
    near, far = open_shards(folder), open_shards("gs://sets/noise/16px", memory_bytes=0, patience=PATIENCE)
    assert far.fingerprint == near.fingerprint
    pairs = zip(far.batches(seed=3, batch_size=5), near.batches(seed=3, batch_size=5), strict=True)
    for ours, theirs in islice(pairs, 24):
        assert ours.keys == theirs.keys
        assert torch.equal(ours.content, theirs.content)


@pytest.mark.parametrize("address", ["gs://sets/nothing/16px", "gs://nobody/noise/16px"])
def test_what_is_not_there_is_named_in_one_line(address: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=rf"{address}/index\.json: there is no such file"):
        open_shards(address, patience=PATIENCE)
    assert "Traceback" not in capfd.readouterr().err
