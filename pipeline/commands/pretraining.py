"""``atdiff pretrain``: small models of one's own, where no trained ones are at hand."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.data import numbers

if TYPE_CHECKING:
    from atdiff_core.data.stream import ShardSet
    from atdiff_core.pretraining.loop import Schedule

app = typer.Typer(no_args_is_help=True, help="Train a small autoencoder or CLIP where no trained one is at hand.")

Shards = Annotated[str, typer.Argument(help="A set: a <resolution>px folder or its address.")]
Out = Annotated[Path, typer.Option(help="Folder of the model; given again, an interrupted training goes on in it.")]
Steps = Annotated[int, typer.Option(min=1, help="Optimizer steps.")]
BatchSize = Annotated[int, typer.Option(min=2, help="Samples of a minibatch.")]
Rate = Annotated[float, typer.Option(min=0, help="Peak learning rate.")]
Seed = Annotated[int, typer.Option(help="Of the weights and of the minibatches.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]


@app.command("autoencoder")
def autoencoder(
    shards: Shards,
    out: Out,
    channels: Annotated[str, typer.Option(help="Of the levels; each but the last halves the side.")] = "16,32,32",
    latent_channels: Annotated[int, typer.Option(min=1, help="Of a latent.")] = 4,
    posterior_weight: Annotated[float, typer.Option(min=0, help="Of the posterior's divergence.")] = 1e-4,
    steps: Steps = 1000,
    batch_size: BatchSize = 32,
    learning_rate: Rate = 2e-3,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = 2,
) -> None:
    """Train an AutoencoderKL on the pictures of a set; interrupted, it continues with the same command."""
    import torch

    from atdiff_core.devices import chosen_device
    from atdiff_core.pretraining.autoencoder import AutoencoderRun, AutoencoderShape, save_autoencoder
    from atdiff_core.pretraining.loop import PretrainingState
    from pipeline.pretraining import finish, finished, run_pretraining

    torch.set_num_threads(threads)
    opened = _pictures(shards)
    shape = AutoencoderShape(
        resolution=opened.resolution, image_channels=opened.image_channels,
        channels=tuple(numbers(channels, "channels")), latent_channels=latent_channels,
    )  # fmt: skip
    schedule = _schedule(opened, steps, batch_size, learning_rate, seed)
    run = AutoencoderRun(shape=shape, posterior_weight=posterior_weight, schedule=schedule)
    figures = finished(out, run.key)
    if figures is None:
        state = PretrainingState.fresh(shape.build(seed=seed).to(chosen_device(device)), schedule)
        run_pretraining(run, schedule, state, opened, out, key=run.key)
        figures = save_autoencoder(state.network, opened, out)
        finish(out, run.key, figures)
    side = opened.resolution // 2 ** (len(shape.channels) - 1)
    _tell(out, figures, f"{opened.resolution} px to {latent_channels} x {side} x {side}")


@app.command("clip")
def clip(
    shards: Shards,
    out: Out,
    held_out: Annotated[str, typer.Option(help="A set of other pairs, on which retrieval is measured.")] = "",
    patch: Annotated[int, typer.Option(min=1, help="Side of a patch, in pixels.")] = 4,
    vocabulary: Annotated[int, typer.Option(min=600, help="Most tokens.")] = 1024,
    tokens: Annotated[int, typer.Option(min=4, help="Places of a sentence.")] = 32,
    width: Annotated[int, typer.Option(min=8, help="Of both towers and of the common space.")] = 64,
    layers: Annotated[int, typer.Option(min=1, help="Of each tower.")] = 3,
    steps: Steps = 600,
    batch_size: BatchSize = 128,
    learning_rate: Rate = 1e-3,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = 2,
) -> None:
    """Train a CLIP on the pairs of a set; interrupted, it continues with the same command.

    Its text tower is a text encoder for `atdiff prompts`; another one, with another seed, is a judge.
    """
    import torch

    from atdiff_core.devices import chosen_device
    from atdiff_core.pretraining.clip import ClipRun, ClipShape, ClipTask, retrieval, save_clip, tokenizer_for
    from atdiff_core.pretraining.loop import PretrainingState
    from pipeline.pretraining import finish, finished, run_pretraining

    torch.set_num_threads(threads)
    opened = _pictures(shards)
    others = _pictures(held_out) if held_out else None
    shape = ClipShape(
        resolution=opened.resolution, patch=patch, vocabulary=vocabulary, tokens=tokens, width=width, layers=layers
    )
    schedule = _schedule(opened, steps, batch_size, learning_rate, seed)
    run = ClipRun(shape=shape, schedule=schedule)
    figures = finished(out, run.key)
    if figures is None:
        tokenizer = tokenizer_for(opened, shape)
        state = PretrainingState.fresh(shape.build(tokenizer, seed=seed).to(chosen_device(device)), schedule)
        run_pretraining(ClipTask(run, tokenizer), schedule, state, opened, out, key=run.key)
        save_clip(state.network, tokenizer, shape, out)
        figures = {f"train/{name}": value for name, value in retrieval(state.network, tokenizer, opened).items()}
        if others is not None:
            found = retrieval(state.network, tokenizer, others)
            figures |= {f"held_out/{name}": value for name, value in found.items()}
        finish(out, run.key, figures)
    _tell(out, figures, f"{tokens} tokens of width {width}")


def _pictures(shards: str) -> "ShardSet":
    from atdiff_core.data.stream import open_shards

    opened = open_shards(shards)
    if opened.index.latents is not None:
        raise ValueError(f"{shards}: holds latents, a set of pictures is needed")
    return opened


def _schedule(opened: "ShardSet", steps: int, batch_size: int, learning_rate: float, seed: int) -> "Schedule":
    from atdiff_core.pretraining.loop import Schedule

    return Schedule(
        steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed, dataset=opened.fingerprint
    )


def _tell(out: Path, figures: dict[str, float], what: str) -> None:
    from rich.console import Console

    told = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    Console().print(f"{out}: {what}; {told}", soft_wrap=True, highlight=False)
