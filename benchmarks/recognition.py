"""Whether sampled digits can be read: ``python -m benchmarks.recognition SHARDS SNAPSHOT=SAMPLER ...``.

A classifier learns on half of a labelled set and reads the other half, and then what snapshots make of the same
latents. A picture counts as recognised where the classifier gives one class at least 90 %. What it says of
other pictures tells what that is worth: of the held-out ones, of the same with their pixels
shuffled, which are no digits, and of halfway mixtures of two of them.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.neural_network import MLPClassifier

from atdiff_core.data.batch import scaled
from atdiff_core.data.stream import ShardSet, open_shards
from atdiff_core.samplers import Sampler, sample
from atdiff_core.snapshots import load_snapshot

SURE = 0.9
COUNT = 500
Pictures = NDArray[np.float32]


def labelled(shards: ShardSet) -> tuple[Pictures, NDArray[np.int64]]:
    """All pictures of a set, ``[samples, elements]`` in [-1, 1], and their classes."""
    batch = next(shards.batches(seed=0, batch_size=shards.num_samples))
    return scaled(batch.content).flatten(1).numpy(), batch.labels.numpy()


def sampled(folder: Path, sampler: Sampler) -> Pictures:
    snapshot = load_snapshot(folder)
    images, _ = sample(
        snapshot.network, snapshot.noise, sampler, shape=snapshot.image_shape, indices=range(COUNT), seed=0
    )
    return images.flatten(1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument(
        "models", nargs="+", metavar="SNAPSHOT=SAMPLER@NFE", help="say runs/teacher/snapshot=edm_euler@18"
    )
    arguments = parser.parse_args()
    pictures, classes = labelled(open_shards(arguments.shards))
    half = len(pictures) // 2
    reader = MLPClassifier((128,), alpha=1e-2, max_iter=60, random_state=0).fit(pictures[:half], classes[:half])
    held_out = pictures[half:][:COUNT]
    draw = np.random.default_rng(0)
    shown = {
        f"held out (read right: {reader.score(pictures[half:], classes[half:]):.1%})": held_out,
        "held out, pixels shuffled": draw.permuted(held_out, axis=1),
        "held out, halfway to the next": (held_out + np.roll(held_out, 1, axis=0)) / 2,
    }
    for model in arguments.models:
        folder, _, sampler = model.rpartition("=")
        label, _, nfe = sampler.partition("@")
        shown[model] = sampled(Path(folder), Sampler.named(label, nfe=int(nfe)))
    table = Table("pictures", f"recognised (>= {SURE:.0%} sure)", "classes among them", title=f"{COUNT} pictures each")
    for name, each in shown.items():
        odds = reader.predict_proba(each)
        sure = odds.max(axis=1) >= SURE
        found = np.unique(odds[sure].argmax(axis=1))
        table.add_row(name, f"{sure.mean():.1%}", str(len(found)))
        print(f"recognition: {name} = {sure.mean():.3f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
