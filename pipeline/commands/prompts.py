"""``atdiff prompts``: captions through a text encoder, once."""

from pathlib import Path
from typing import Annotated

import typer


def prompts(
    shards: Annotated[str, typer.Argument(help="A set with captions: a <resolution>px folder or its address.")],
    encoder: Annotated[
        str, typer.Option(help="Folder of a CLIPTextModel and its tokenizer, of a diffusers pipeline, or a hub id.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the embeddings.")],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, to store.")] = "float32",
    batch_size: Annotated[int, typer.Option(min=1, help="Captions encoded together.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Embed all captions of a set for training on them; interrupted, it continues with the same command."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from atdiff_core.data.prompts import load_prompts, plan_prompts, write_prompts
    from atdiff_core.data.stream import open_shards
    from atdiff_core.devices import chosen_device
    from atdiff_core.text_encoders import load_text_encoder

    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16, got {dtype!r}")
    name = str(Path(encoder).resolve()) if Path(encoder).is_dir() else encoder
    found = load_text_encoder(name, device=chosen_device(device))
    plan = plan_prompts(
        open_shards(shards), found, out.resolve(), dtype="float32" if dtype == "float32" else "bfloat16"
    )
    console = Console()
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as progress:
        task = progress.add_task(f"encoding the captions of {shards}", total=len(plan.captions))
        for done in write_prompts(plan, batch_size=batch_size):
            progress.update(task, completed=done)
    written = load_prompts(out)
    cut = f", {written.manifest.cut:,} cut to {written.tokens} tokens" if written.manifest.cut else ""
    console.print(
        f"{out}: {len(written):,} captions with the empty one{cut}, {written.tokens} x {written.width}, "
        f"encoder {written.encoder_key[:12]}, fingerprint {written.fingerprint[:12]}",
        soft_wrap=True, highlight=False,
    )  # fmt: skip
