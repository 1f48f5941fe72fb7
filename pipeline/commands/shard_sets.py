"""``atdiff shards index``, ``verify`` and ``show``: sets that exist already."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pipeline.commands.data import Licence, Workers

if TYPE_CHECKING:
    from atdiff_core.data.index import ShardIndex

Sets = Annotated[Path, typer.Argument(help="A set's folder, or one of several <resolution>px folders.")]

DAMAGED = 1
TYPICAL_SAMPLE_BYTES = 20_000


def index(
    folder: Annotated[Path, typer.Argument(help="A folder of tars, for example img2dataset's output.")],
    name: Annotated[str, typer.Option(help="What the set is called; the folder's name otherwise.")] = "",
    licence: Licence = "not stated",
    resolution: Annotated[
        int, typer.Option(min=0, help="To which images are cropped when read; 0: they all have one size already.")
    ] = 0,
    grey: Annotated[bool, typer.Option(help="Read the images with one channel.")] = False,
    classes: Annotated[Path | None, typer.Option(help="Text file of the classes' names, one a line.")] = None,
    labels: Annotated[bool, typer.Option(help="Use .cls members.")] = True,
    captions: Annotated[
        str, typer.Option(help="A .txt member is the whole caption, holds one on each of its lines, or none is used.")
    ] = "whole",
    workers: Workers = 0,
) -> None:
    """Index tars as they are, so that they can be streamed; nothing in them is changed."""
    from rich.console import Console

    from atdiff_core.data.index import INDEX_FILE, read_index
    from atdiff_core.data.indexing import IndexingSettings, caption_layout, renew_tables, tars_in
    from pipeline.parallel import chosen_workers
    from pipeline.shard_writing import index_folder

    console = Console()
    if (folder / INDEX_FILE).exists() and (present := read_index(folder)).recipe is not None:
        renewed = renew_tables(folder)
        console.print(f"{folder}: is indexed; {len(renewed)} of {len(present.shards)} tables of members written again")
        return
    settings = IndexingSettings(
        name=name or folder.resolve().name,
        licence=licence,
        classes=_lines(classes) if classes else (),
        labels=labels,
        captions=caption_layout(captions),
        resolution=resolution,
        image_channels=1 if grey else 0,
    )
    size = sum(tar.stat().st_size for tar in tars_in(folder))
    found = index_folder(
        folder.resolve(), settings, workers=chosen_workers(workers, samples=size // TYPICAL_SAMPLE_BYTES)
    )
    console.print(told(folder, found), soft_wrap=True)


def verify(
    folder: Sets,
    hashes: Annotated[bool, typer.Option(help="Compare every byte's checksum; without, the structure alone.")] = True,
    decode: Annotated[bool, typer.Option(help="Decode every sample too.")] = False,
    workers: Workers = 0,
) -> None:
    """Compare sets with their indexes; tells shard and offset of all damage, and ends with 1 if there is any."""
    from rich.console import Console

    from atdiff_core.data.index import read_index
    from pipeline.parallel import chosen_workers
    from pipeline.shard_writing import verify_folder

    console, damaged = Console(), False
    for each in sets_in(folder):
        index = read_index(each)
        # Reading is quick: it pays to start Ray for much larger sets than writing does.
        shared = chosen_workers(workers, samples=index.num_samples // (1 if decode else 20))
        findings = verify_folder(each.resolve(), index, hashes=hashes, decode=decode, workers=shared)
        damaged |= bool(findings)
        for finding in findings:
            console.print(f"[red]damaged[/] {escape(finding)}", soft_wrap=True, highlight=False)
        if not findings:
            console.print(f"[green]sound[/] {told(each, index)}", soft_wrap=True, highlight=False)
    if damaged:
        raise typer.Exit(DAMAGED)


def sets_in(folder: Path) -> list[Path]:
    """The folder itself if it is a set, or else the sets below it in the order of their resolutions."""
    from atdiff_core.data.index import INDEX_FILE

    below = [file.parent for file in folder.glob(f"*px/{INDEX_FILE}")]
    if (folder / INDEX_FILE).exists() or not below:
        return [folder]
    return sorted(below, key=lambda path: (len(path.name), path.name))


def _lines(file: Path) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error})") from error


def told(folder: Path, index: "ShardIndex") -> str:
    """One line on a set."""
    parts = [f"{index.num_samples:,} {index.kind}"]
    parts += [f"{len(index.classes):,} classes"] if index.classes else []
    parts += [f"{index.captions.total:,} captions"] if index.captions else []
    parts += [f"{len(index.shards):,} shards", f"{sum(shard.bytes for shard in index.shards) / 1e6:,.1f} MB"]
    parts += [f"{index.broken:,} broken left out, see broken.json"] if index.broken else []
    return f"{folder}: {', '.join(parts)}, fingerprint {index.fingerprint[:12]}"
