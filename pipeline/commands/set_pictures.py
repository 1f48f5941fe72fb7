"""``atdiff shards show`` and ``atdiff latents``: sets to look at, and to encode."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.data import Workers

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from atdiff_core.autoencoders import Autoencoder
    from atdiff_core.data.overview import Overview

MAX_CAPTIONS = 5

DeviceName = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]


def show(
    shards: Annotated[str, typer.Argument(help="A set: a <resolution>px folder or its address.")],
    out: Annotated[Path, typer.Option(help="PNG to draw.")] = Path("sheet.png"),
    number: Annotated[int, typer.Option(min=1, help="Samples to show.")] = 64,
    columns: Annotated[int, typer.Option(min=1, help="Pictures side by side.")] = 8,
    autoencoder: Annotated[
        str, typer.Option(help="What decodes latents; the one that made them otherwise, if its folder is there.")
    ] = "",
    images: Annotated[
        str, typer.Option(help="The set that was encoded: every second row of the sheet shows its images.")
    ] = "",
    device: DeviceName = "auto",
) -> None:
    """Draw a contact sheet of a set and print its figures; latents are decoded where their autoencoder is at hand."""
    from rich.console import Console

    from atdiff_core.data.overview import overview, pictures_of
    from atdiff_core.devices import chosen_device
    from atdiff_core.pictures import save_grid

    console = Console()
    seen = overview(shards, number)
    decoder = _decoder(seen, autoencoder, chosen_device(device))
    pictures = pictures_of(seen.content, seen.index, decoder)
    if images:
        pictures = _beside(pictures, seen, images, columns)
    save_grid(pictures, out, columns)
    console.print(_figures(shards, seen))
    for key, captions in zip(seen.shown.keys, seen.shown.captions[:MAX_CAPTIONS], strict=False):
        if captions:
            console.print(f"{key}: {' | '.join(captions)}", soft_wrap=True, markup=False, highlight=False)
    what = (
        "" if seen.index.latents is None else ", decoded" if decoder else ", three channels of the latents as colours"
    )
    console.print(f"{out}: {len(seen.shown.keys)} samples{what}", soft_wrap=True, highlight=False)


def latents(
    images: Annotated[Path, typer.Argument(help="The folder of a set of images, <resolution>px.")],
    autoencoder: Annotated[str, typer.Option(help="Folder or hub id of a diffusers AutoencoderKL.")],
    out: Annotated[Path, typer.Option(help="Folder of the new set.")],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, to compute in and to store.")] = "float32",
    batch_size: Annotated[int, typer.Option(min=1, help="Images encoded together.")] = 16,
    workers: Workers = 0,
    device: DeviceName = "auto",
) -> None:
    """Encode a set of images with an autoencoder: the same shards, labels and captions, latents for images."""
    from rich.console import Console

    from atdiff_core.autoencoders import load_autoencoder
    from atdiff_core.data.index import load_index
    from atdiff_core.data.latent_writing import is_encoded, plan_latents
    from atdiff_core.devices import chosen_device
    from pipeline.commands.shard_sets import told
    from pipeline.latent_writing import write_latents
    from pipeline.parallel import chosen_workers

    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16, got {dtype!r}")
    name = str(Path(autoencoder).resolve()) if Path(autoencoder).is_dir() else autoencoder
    chosen = chosen_device(device)
    network = load_autoencoder(name, device=chosen, dtype="float32" if dtype == "float32" else "bfloat16")
    plan = plan_latents(images.resolve(), out.resolve(), network, batch_size=batch_size, device=chosen)
    if not is_encoded(plan):
        # An autoencoder takes a hundred times as long as an image's decoding: Ray pays early.
        write_latents(plan, workers=chosen_workers(workers, samples=100 * plan.index.num_samples))
    Console().print(told(out, load_index(out)), soft_wrap=True)


def _decoder(seen: "Overview", asked: str, device: str) -> "Autoencoder | None":
    """The autoencoder of a set of latents: the one asked for, or its own if that is a folder that is there."""
    from atdiff_core.autoencoders import load_autoencoder

    if seen.index.latents is None:
        if asked:
            raise ValueError("the set holds images, which need no --autoencoder")
        return None
    if not asked and not Path(seen.index.latents.autoencoder).is_dir():
        return None
    found = load_autoencoder(asked or seen.index.latents.autoencoder, device=device)
    if found.key != seen.index.latents.autoencoder_key:
        raise ValueError(f"{found.name}: not the autoencoder that made these latents (its weights differ)")
    return found


def _beside(pictures: "Tensor", seen: "Overview", images: str, columns: int) -> "Tensor":
    """A row of images, a row of what became of them, and so on."""
    import torch

    from atdiff_core.data.overview import overview

    originals = overview(images, len(seen.shown.keys))
    if originals.shown.keys != seen.shown.keys:
        raise ValueError(f"{images}: not the images of these latents (their keys differ)")
    if originals.content.shape != pictures.shape:
        raise ValueError(
            f"{images}: {tuple(originals.content.shape)} pixels, the latents decode to {tuple(pictures.shape)}"
        )
    rows = zip(originals.content.split(columns), pictures.split(columns), strict=True)
    return torch.cat([part for pair in rows for part in pair])


def _figures(shards: str, seen: "Overview") -> "Table":
    from rich.table import Table

    index = seen.index
    table = Table(title=shards, show_header=False, title_justify="left")
    rows = {"name": index.name, "licence": index.licence, "kind": index.kind, "samples": f"{index.num_samples:,}"}
    rows["size"] = f"{index.resolution} px, {index.image_channels} channels" + (
        "" if index.prepared else ", cropped on reading"
    )
    if index.latents is not None:
        latents = index.latents
        rows["latents"] = (
            f"{latents.channels} x {latents.side} x {latents.side}, {latents.dtype}, {latents.autoencoder}"
        )
    else:
        rows["formats"] = ", ".join(index.image_formats)
    rows["shards"] = f"{len(index.shards):,}, {sum(shard.bytes for shard in index.shards) / 1e6:,.1f} MB"
    if index.classes:
        counts = [seen.labels[number] for number in range(len(index.classes))]
        rows["classes"] = (
            f"{len(index.classes):,}, of {sum(counts):,} samples {min(counts):,} to {max(counts):,} in each"
        )
    if index.captions is not None:
        each = index.captions.total / max(index.captions.samples, 1)
        rows["captions"] = f"{index.captions.total:,} of {index.captions.samples:,} samples, {each:.2f} each"
    rows["broken"] = f"{index.broken:,} left out"
    means, deviations = seen.channel_means, seen.channel_deviations
    rows["means"] = ", ".join(f"{value:+.3f}" for value in means)
    rows["deviations"] = ", ".join(f"{value:.3f}" for value in deviations)
    rows["fingerprint"] = index.fingerprint
    rows["manifest"] = index.key
    for name, value in rows.items():
        table.add_row(name, value)
    return table
