"""Sets at gs://, on an emulator of Google's object store."""

import socket
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
import torch

from atdiff_core.data import shard_files
from atdiff_core.data.remote import Patience
from atdiff_core.data.stream import ShardSet, open_shards

pytest.importorskip("gcsfs", reason="pip install 'atdiff[test]'")
emulator = pytest.importorskip("gcp_storage_emulator.server", reason="pip install 'atdiff[test]'")

PATIENCE = Patience(attempts=2, timeout_sec=5.0, first_delay_sec=0.01)


@pytest.fixture(scope="module")
def folder(digits_8px: ShardSet) -> Path:
    return Path(digits_8px.path)


@pytest.fixture(scope="module", autouse=True)
def _store(folder: Path) -> Iterator[None]:
    """The same set as ``gs://sets/digits/8px``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="sets")
    server.start()
    try:
        for file in folder.iterdir():
            query = urlencode({"uploadType": "media", "name": f"digits/8px/{file.name}"})
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
    near, far = open_shards(folder), open_shards("gs://sets/digits/8px", memory_bytes=0, patience=PATIENCE)
    assert far.fingerprint == near.fingerprint
    pairs = zip(far.batches(seed=3, batch_size=5), near.batches(seed=3, batch_size=5), strict=True)
    for ours, theirs in islice(pairs, 24):
        assert ours.keys == theirs.keys
        assert torch.equal(ours.content, theirs.content)


@pytest.mark.parametrize("address", ["gs://sets/nothing/8px", "gs://nobody/digits/8px"])
def test_what_is_not_there_is_named_and_gcsfs_says_nothing_of_its_own(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=rf"{address}/index\.json: there is no such file"):
        open_shards(address, patience=PATIENCE)
    assert not [record for record in caplog.records if record.name.startswith("gcsfs")]
