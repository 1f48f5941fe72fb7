"""The stream beside ``webdataset`` and beside bare decoding: ``python -m benchmarks.stream``.

All arms decode the same files to the same arrays on as many processes, in turns:

* ours: the exact stream, member by member, checksums compared;
* webdataset: its own pipeline with shards and samples shuffled and its own loader, decoding as we do;
* Pillow: ``Image.open`` on bytes that lie in each process's memory, nothing read, sent, kept or ordered;
* decoders: the same by the decoders as we call them, by the file's extension.

The two streams work ahead of who takes from them. So that no arm is given what was made before its
turn, nor slowed by the others after theirs, the clock starts when all processes have come to rest,
and as many minibatches as lie ready, and as many again, have been taken.
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyspng
import torch
import webdataset
from PIL import Image
from rich.console import Console
from rich.table import Table
from simplejpeg import decode_jpeg, decode_jpeg_header
from sklearn.datasets import load_sample_images

from atdiff_core.data.index import ShardIndex, load_index, parsed_index
from atdiff_core.data.members import MemberTable, members_file
from atdiff_core.data.order import Layout, SampleOrder
from atdiff_core.data.sources import ArraySource
from atdiff_core.data.stream import open_shards
from atdiff_core.data.writing import write_shards
from benchmarks.measuring import interleaved, machine_line, ratio

BATCH_SIZE = 64
AHEAD = 3
SHUFFLED_TOGETHER = 1000
GOALS = {"webdataset": 1.1, "Pillow": 0.9}


def pictures(count: int, side: int) -> ArraySource:
    """Random crops of scikit-learn's two photographs."""
    draw = np.random.default_rng(0)
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    images = np.empty((count, side, side, 3), dtype=np.uint8)
    for number in range(count):
        size = int(draw.integers(96, 400))
        left, top = int(draw.integers(0, 640 - size)), int(draw.integers(0, 427 - size))
        crop = photographs[number % 2].crop((left, top, left + size, top + size))
        images[number] = np.asarray(crop.resize((side, side), Image.Resampling.BICUBIC))
    return ArraySource("crops", "BSD", ["china", "flower"], images, np.arange(count, dtype=np.uint8) % 2)


def decoded(content: bytes, extension: str) -> np.ndarray[Any, Any]:
    """As ``SampleDecoder`` does: by the extension's decoder, without looking for one."""
    if extension == "jpg":
        decode_jpeg_header(content)
        pixels: np.ndarray[Any, Any] = decode_jpeg(content, "RGB")
    else:
        pixels = pyspng.load(content)
    return pixels


def take(batches: Iterator[Any], count: int) -> None:
    for _ in islice(batches, count):
        pass


def rest() -> None:
    """Wait until the processes that this one has started do nothing more."""

    def seconds() -> float:
        times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
        return sum(each.user + each.system for each in times)

    before = -1.0
    while (now := seconds()) > before:
        before = now
        time.sleep(0.25)


def ours(folder: Path, processes: int) -> Iterator[Any]:
    return open_shards(folder, memory_bytes=0).batches(seed=0, batch_size=BATCH_SIZE, workers=processes)


def theirs(folder: Path, processes: int) -> Iterator[Any]:
    """The pipeline of webdataset's documentation, repeated without end."""
    shards = [str(folder / shard.file) for shard in load_index(folder).shards]

    def picture_and_label(sample: dict[str, Any]) -> tuple[torch.Tensor, int, str]:
        extension = next(each for each in ("png", "jpg", "webp") if each in sample)
        return torch.from_numpy(decoded(sample[extension], extension).copy()), int(sample["cls"]), sample["__key__"]

    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), nodesplitter=None, resampled=False, empty_check=False)
        .repeat()
        .shuffle(SHUFFLED_TOGETHER)
        .map(picture_and_label)
        .batched(BATCH_SIZE)
    )
    return iter(webdataset.WebLoader(dataset, batch_size=None, num_workers=processes, prefetch_factor=AHEAD))


MEMBERS: list[tuple[bytes, str]] = []
"""Pictures in the memory of each process of the bare decoding, and their extensions."""


def fill_members(folder: Path, count: int) -> None:
    torch.set_num_threads(1)
    for shard in load_index(folder).shards:
        tar = (folder / shard.file).read_bytes()
        table = MemberTable.load(members_file(folder / shard.file), tar_bytes=len(tar))
        for row in range(len(table)):
            extension = table.content_extension(row)
            place = table.place(row, extension)
            if place is not None and len(MEMBERS) < count:
                MEMBERS.append((tar[place.offset : place.offset + place.size], extension))


def members_from(first: int) -> list[tuple[bytes, str]]:
    """As many as a minibatch has."""
    return [MEMBERS[number % len(MEMBERS)] for number in range(first, first + BATCH_SIZE)]


def decode_members(first: int) -> int:
    """A minibatch; as many rows were decoded."""
    return sum(len(decoded(*member)) for member in members_from(first))


def open_members(first: int) -> int:
    """The same as Pillow's manual opens a picture."""
    return sum(len(np.asarray(Image.open(io.BytesIO(content)))) for content, _ in members_from(first))


def compared(folder: Path, batches: int, rounds: int, processes: int) -> dict[str, list[float]]:
    """Seconds that each arm takes for as many pictures, by round."""
    pool = get_context("forkserver").Pool(processes, fill_members, (folder, 4096))
    streams = {"ours": ours(folder, processes), "webdataset": theirs(folder, processes)}
    arms: dict[str, Callable[[], None]] = {name: partial(take, stream, batches) for name, stream in streams.items()}
    numbers = range(0, batches * BATCH_SIZE, BATCH_SIZE)
    arms["Pillow"] = lambda: take(pool.imap_unordered(open_members, numbers), batches)
    arms["decoders"] = lambda: take(pool.imap_unordered(decode_members, numbers), batches)

    def before(arm: str) -> None:
        rest()
        if arm in streams:
            take(streams[arm], 2 * processes * AHEAD)

    seconds = interleaved(arms, rounds=rounds, before=before)
    streams["ours"].close()  # type: ignore[attr-defined]
    pool.terminate()
    pool.join()
    return seconds


def resident_mib(process: int | str) -> float:
    """Memory of a process that it shares with nobody, in MiB."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    private = [line for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))]
    return sum(int(line.split()[1]) for line in private) / 1024


def memory_growth(folder: Path, processes: int) -> tuple[float, float]:
    """Largest memory of the readers after one epoch and after four, in MiB."""
    from multiprocessing import active_children

    shards = open_shards(folder, memory_bytes=0)
    stream = shards.batches(seed=0, batch_size=BATCH_SIZE, workers=processes)
    epoch = shards.num_samples // BATCH_SIZE
    readings = []
    for number, _ in enumerate(islice(stream, 4 * epoch + 1)):
        if number in (epoch, 4 * epoch):
            workers = [child.pid for child in active_children() if child.pid]
            readings.append(max(resident_mib(each) for each in workers))
    stream.close()
    return readings[0], readings[1]


def resume_seconds(position: int = 10**6) -> float:
    """Reading the index of 20,000 shards of 500 pictures (1.1 TB) and finding the first minibatch after a position."""
    entry = {"samples": 500, "skipped": 0, "bytes": 55_000_000, "sha256": "0" * 64, "members_sha256": "0" * 64}
    shards = [entry | {"file": f"{number:06d}.tar"} for number in range(20_000)]
    pattern: dict[str, Any] = {
        "name": "synthetic", "licence": "", "classes": ("a",), "source_key": "", "resolution": 256,
        "image_channels": 3, "image_formats": ("jpg",), "prepared": True, "captions": None, "latents": None,
        "recipe": None, "broken": 0, "tool_version": "", "shards": shards,
    }  # fmt: skip
    content = ShardIndex.model_validate(pattern).model_dump_json().encode()
    began = time.perf_counter()
    index = parsed_index(content, "synthetic")
    counts = [shard.samples for shard in index.shards]
    order = SampleOrder(counts, Layout.of(sum(counts), sum(shard.bytes for shard in index.shards)))
    assert len(order.places(0, position, position + BATCH_SIZE).rows) == BATCH_SIZE
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, 4))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("pictures", "arm", "pictures/s", "ours / arm, median (quartiles)", title=machine_line())
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        for side, image_format, count, batches in (
            (64, "png", 6000, 60),
            (64, "jpg", 6000, 60),
            (256, "jpg", 1500, 20),
        ):
            out = Path(scratch) / f"{image_format}{side}"
            for _ in write_shards(
                pictures(count, side),
                out,
                [side],
                image_channels=3,
                image_format=image_format,
                samples_per_shard=250,  # type: ignore[arg-type]
            ):
                pass
            name = f"{side} px {image_format}"
            seconds = compared(out / f"{side}px", batches, arguments.rounds, arguments.processes)
            for arm, spent in seconds.items():
                middle, low, high = ratio(seconds, arm, "ours")
                rate = batches * BATCH_SIZE * len(spent) / sum(spent)
                table.add_row(name, arm, f"{rate:.0f}", f"{middle:.3f} ({low:.3f} to {high:.3f})")
                if arm in GOALS:
                    lines.append(f"stream: ours / {arm}, {name} = {middle:.3f} (goal >= {GOALS[arm]})")
        first, last = memory_growth(Path(scratch) / "jpg64" / "64px", arguments.processes)
    Console(width=120).print(table)
    print(*lines, sep="\n")
    print(f"stream: seconds to resume after 10^6 samples of a synthetic index = {resume_seconds():.3f} (goal < 1)")
    print(f"stream: memory of a reader after four epochs / after one = {last / first:.3f} (goal <= 1.1)")


if __name__ == "__main__":
    main()
