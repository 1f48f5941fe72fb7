"""``atdiff import`` and ``atdiff export``: weights from and for other code bases."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from atdiff_core.adm import AttentionOrder
    from atdiff_core.karras import Noise
    from atdiff_core.networks import UNet

importing = typer.Typer(no_args_is_help=True, help="Make a snapshot of the weights of another code base.")
exporting = typer.Typer(no_args_is_help=True, help="Write a snapshot's weights for another code base.")

Order = Annotated[str, typer.Option(help="new or legacy: the row order of query, key and value (legacy: IDDPM).")]


@importing.command("adm")
def import_adm(
    file: Annotated[Path, typer.Argument(help="A .pt file of guided-diffusion or improved-diffusion, raw or EMA.")],
    preset: Annotated[str, typer.Option(help="The network: adm_cifar10, adm_imagenet64, iddpm_cifar10, adm_small.")],
    out: Annotated[Path, typer.Option(help="Folder of the snapshot.")],
    attention_order: Order = "new",
    noise: Annotated[
        str,
        typer.Option(help="cosine or linear: the schedule it was trained with; or edm, or consistency."),
    ] = "cosine",
    timesteps: Annotated[int, typer.Option(help="Noise levels it was trained with (cosine and linear).")] = 1000,
    resolution: Annotated[int | None, typer.Option(help="Pixels, if not the preset's.")] = None,
    image_channels: Annotated[int | None, typer.Option(help="1 or 3, if not the preset's.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="0 for none, if not the preset's.")] = None,
    learned_variance: Annotated[bool | None, typer.Option(help="If not the preset's.")] = None,
) -> None:
    """Weights of ADM or improved DDPM as a snapshot that opens in stock diffusers.

    The file does not tell the attention order, the noise or the width of the heads: give those it
    was trained with. improved-diffusion by default shows its network t * 1000 / T, which nothing
    here does: its files fit only where T is 1000.
    """
    from rich.console import Console

    from atdiff_core.adm import load_adm, read_adm
    from atdiff_core.files import sha256_of
    from atdiff_core.snapshots import load_snapshot, save_imported

    unet = _network(preset, resolution, image_channels, num_classes, learned_variance)
    schedule = _trained_on(noise, timesteps)
    order = _order(attention_order)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder; choose another --out")
    network = load_adm(read_adm(file), unet, order)
    origin = {"format": "adm", "file": file.name, "sha256": sha256_of(file), "attention_order": order}
    save_imported(network, unet, schedule, out, origin=origin)
    weights = sum(parameter.numel() for parameter in network.parameters())
    levels = "" if noise in ("edm", "consistency") else f" of {timesteps} levels"
    Console().print(
        f"{out}: {preset}, {weights / 1e6:.1f} M parameters, {schedule.kind} noise{levels}, "
        f"key {load_snapshot(out).key[:12]}",
        soft_wrap=True,
    )


@exporting.command("adm")
def export_adm(
    snapshot: Annotated[Path, typer.Argument(help="A snapshot: a diffusers DDPM folder.")],
    file: Annotated[Path, typer.Argument(help="The .pt file to write.")],
    attention_order: Order = "new",
) -> None:
    """A snapshot's weights as the plain state dict that guided-diffusion loads."""
    from rich.console import Console

    from atdiff_core.adm import to_adm, write_adm
    from atdiff_core.snapshots import load_snapshot

    order = _order(attention_order)
    if file.exists():
        raise ValueError(f"{file} is there already; choose another file")
    opened = load_snapshot(snapshot)
    opened.check_needs_no_prompt(str(snapshot))
    network = opened.network
    tensors = to_adm(network, order)
    write_adm(tensors, file)
    config = network.unet.config
    Console().print(
        f"{file}: {len(tensors)} tensors, attention order {order}, heads of {config.attention_head_dim} channels, "
        f"{config.norm_num_groups} groups a normalisation (guided-diffusion always has 32)",
        soft_wrap=True,
    )


def _trained_on(kind: str, timesteps: int) -> "Noise":
    from atdiff_core.karras import KarrasNoise
    from atdiff_core.noise import NoiseSchedule

    if kind in ("edm", "consistency"):
        return KarrasNoise.model_validate({"kind": kind})
    return NoiseSchedule.model_validate({"kind": kind, "num_timesteps": timesteps})


def _network(
    name: str, resolution: int | None, image_channels: int | None, num_classes: int | None, learned: bool | None
) -> "UNet":
    from atdiff_core.networks import preset

    unet = preset(name, resolution=resolution, image_channels=image_channels)
    if num_classes is not None:
        unet = unet.but(num_classes=num_classes)
    return unet if learned is None else unet.but(learned_variance=learned)


def _order(text: str) -> "AttentionOrder":
    if text not in ("new", "legacy"):
        raise ValueError(f"attention-order must be new or legacy, got {text!r}")
    return "new" if text == "new" else "legacy"
