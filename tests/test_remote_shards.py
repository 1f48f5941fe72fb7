"""Sets in an object store: every sample, whatever the server does, and each piece fetched once."""

import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from fsspec.registry import _registry
from waiting import wait_until

from atdiff_core.data import shard_files
from atdiff_core.data.disk_cache import DiskCache
from atdiff_core.data.overview import overview
from atdiff_core.data.remote import Patience
from atdiff_core.data.sources import ArraySource
from atdiff_core.data.stream import ShardSet, open_shards
from atdiff_core.data.writing import write_shards

pytest.importorskip("moto", reason="the object store of these tests; pip install 'atdiff[test]'")
from object_store import BUCKET, ENVIRONMENT, Faults, serving, upload

NUM_SAMPLES = 60
PATIENCE = Patience(attempts=6, timeout_sec=1.0, first_delay_sec=0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 noisy images of 16 px in five shards."""
    out = tmp_path_factory.mktemp("set")
    images = np.random.default_rng(0).integers(0, 256, (NUM_SAMPLES, 16, 16), dtype=np.uint8)
    source = ArraySource("noise", "CC0", ["a", "b"], images, np.arange(NUM_SAMPLES, dtype=np.uint8) % 2)
    assert list(write_shards(source, out, [16], image_channels=1, samples_per_shard=12))
    return out / "16px"


@pytest.fixture(scope="module")
def faults() -> Faults:
    return Faults()


@pytest.fixture(scope="module")
def endpoint(folder: Path, faults: Faults) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, serving(faults) as address:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", address)
        upload(address, folder, "noise/16px")
        yield address


@pytest.fixture(autouse=True)
def _small_pieces(endpoint: str, faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pieces of 4 KiB in a cache of its own; faults are switched off again."""
    monkeypatch.setattr(shard_files, "PIECE_BYTES", 4096)
    monkeypatch.setenv("ATDIFF_CACHE", str(tmp_path / "cache"))
    faults.asked.clear()
    yield
    faults.error_every = faults.stall_every = faults.cut_every = faults.failed = 0


def opened(*, memory_bytes: int = 0) -> ShardSet:
    return open_shards(f"s3://{BUCKET}/noise/16px", memory_bytes=memory_bytes, patience=PATIENCE)


def assert_same_epochs(remote: ShardSet, folder: Path, *, batches: int = 24) -> None:
    local = open_shards(folder)
    assert remote.fingerprint == local.fingerprint
    pairs = zip(remote.batches(seed=3, batch_size=5), local.batches(seed=3, batch_size=5), strict=True)
    for ours, theirs in islice(pairs, batches):
        assert ours.keys == theirs.keys
        assert torch.equal(ours.content, theirs.content)
        assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("fault", ["none", "error_every", "stall_every", "cut_every"])
def test_two_epochs_come_without_loss_whatever_the_server_does(fault: str, faults: Faults, folder: Path) -> None:
    if fault != "none":
        setattr(faults, fault, 4 if fault != "stall_every" else 9)
        faults.stall_sec = 1.5
    assert_same_epochs(opened(), folder)
    assert (faults.failed > 0) == (fault != "none")


def test_every_piece_is_fetched_once_for_all_epochs_and_readers(faults: Faults, folder: Path) -> None:
    assert_same_epochs(opened(), folder)
    ranges = [(path, part) for path, part in faults.asked if path.endswith(".tar")]
    assert len(ranges) == len(set(ranges)) > 10
    again = len(faults.asked)
    assert_same_epochs(opened(), folder)
    assert {path.rsplit("/", 1)[1] for path, _ in faults.asked[again:]} == {"index.json"}


def test_a_web_server_serves_a_set_too(endpoint: str, folder: Path) -> None:
    remote = open_shards(f"{endpoint}/{BUCKET}/noise/16px/", memory_bytes=0, patience=PATIENCE)
    assert_same_epochs(remote, folder)


def test_a_set_in_a_store_is_looked_at_without_counting_all_labels(folder: Path) -> None:
    near, far = overview(folder, 5), overview(f"s3://{BUCKET}/noise/16px", 5)
    assert (far.index, far.shown.keys) == (near.index, near.shown.keys)
    assert torch.equal(far.content, near.content)
    assert (near.labels.total(), far.labels.total()) == (NUM_SAMPLES, 5)


def test_a_cache_smaller_than_the_set_gives_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATDIFF_CACHE_GIB", str(20_000 / 2**30))
    assert_same_epochs(opened(), folder)

    def has_made_room() -> bool:
        try:
            return sum(file.stat().st_size for file in (tmp_path / "cache").glob("??/[!.]*")) <= 20_000
        except FileNotFoundError:  # Deleted meanwhile.
            return False

    wait_until(has_made_room)  # The threads that read ahead end in their own time.


def test_a_piece_that_was_damaged_on_the_disk_is_fetched_again(folder: Path, tmp_path: Path) -> None:
    assert_same_epochs(opened(), folder)
    for file in (tmp_path / "cache").glob("??/*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert_same_epochs(opened(), folder)


def test_what_is_not_there_is_named_at_once(endpoint: str, faults: Faults) -> None:
    for address in (f"s3://{BUCKET}/nothing/8px", f"{endpoint}/{BUCKET}/nothing/8px"):
        with pytest.raises(ValueError, match=r"nothing/8px/index\.json: there is no such file"):
            open_shards(address, patience=PATIENCE)
    assert len(faults.asked) <= 4


def test_a_server_that_only_fails_is_given_up_with_its_last_words(faults: Faults) -> None:
    faults.error_every = 1
    with pytest.raises(ValueError, match=r"16px/index\.json: 6 attempts failed, the last with"):
        opened()


def test_a_store_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(_registry, "gs", raising=False)  # It may have been opened before.
    with pytest.raises(ValueError, match=r"gs:// addresses need gcsfs; run: pip install gcsfs"):
        open_shards("gs://sets/noise/16px")


class TestDiskCache:
    def test_content_of_the_wrong_size_is_never_kept(self, tmp_path: Path) -> None:
        cache = DiskCache(tmp_path, 100)
        with pytest.raises(ValueError, match="3 bytes were fetched, 4 are right"):
            cache.opened("ab", 4, lambda: b"abc")
        assert not cache.has("ab")

    def test_the_files_used_last_are_kept(self, tmp_path: Path) -> None:
        cache = DiskCache(tmp_path, 45)
        for number, name in enumerate(["aa", "bb", "cc"]):
            cache.opened(name, 10, lambda: bytes(10)).close()
            os.utime(tmp_path / name / name, (number, number))
        cache.opened("aa", 10, lambda: pytest.fail("it is there")).close()
        cache.opened("dd", 10, lambda: bytes(10)).close()
        assert [name for name in ("aa", "bb", "cc", "dd") if cache.has(name)] == ["aa", "cc", "dd"]

    def test_a_deleted_file_can_be_read_on(self, tmp_path: Path) -> None:
        cache = DiskCache(tmp_path, 0)
        with cache.opened("aa", 3, lambda: b"abc") as file:
            cache.opened("bb", 3, lambda: b"def").close()
            assert not cache.has("aa")
            assert file.read(3) == b"abc"
