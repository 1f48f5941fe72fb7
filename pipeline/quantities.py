"""What a law can be about besides the radius, and along which scales a sweep can tell it."""

from collections.abc import Callable
from typing import Literal, get_args

from atdiff_core.laws import LawRefused, PowerLaw, Rung, fit_power_law
from atdiff_core.perturbations import FreeAT
from atdiff_core.response import Observation, fit_response
from pipeline.results import StudyResult, SweepResult

Quantity = Literal["eta", "alpha", "replays", "reach"]
Scale = Literal["dimension", "resolution"]

QUANTITIES: dict[Quantity, Callable[[FreeAT], float]] = {
    "eta": lambda scheme: scheme.ball.radius,
    "alpha": lambda scheme: scheme.step_size,
    "replays": lambda scheme: float(scheme.num_replays),
    "reach": lambda scheme: scheme.reach,
}
"""Radius and step are amplitudes per element; replays is K; reach is (K - 1) alpha / eta."""


def known_quantity(name: str) -> Quantity:
    """The quantity of that name."""
    for quantity in QUANTITIES:
        if quantity == name:
            return quantity
    raise ValueError(f"a sweep tells laws of {', '.join(QUANTITIES)}, got {name!r}")


def known_scale(name: str) -> Scale:
    """The scale of that name."""
    for scale in get_args(Scale):
        if scale == name:
            found: Scale = scale
            return found
    raise ValueError(f"a law of a sweep runs along {' or '.join(get_args(Scale))}, got {name!r}")


def law_of(result: SweepResult, quantity: Quantity, scale: Scale) -> PowerLaw | LawRefused:
    """The law of the best value of a searched quantity, the others being noise, along a scale.

    Raises:
        ValueError: The quantity took fewer than 4 values at every resolution, so nothing can be said.
    """
    rungs, refused = [], ""
    for study in result.studies:
        along = study.dimension if scale == "dimension" else study.resolution
        try:
            optimum = fit_response(_observations(study, quantity)).optimum
        except ValueError as error:
            refused = f"{study.resolution} px: {error}"
            continue
        rungs.append(Rung(f"{study.resolution} px", along, optimum))
    if not rungs:
        raise ValueError(f"no response to {quantity} can be fitted{'; ' if refused else ''}{refused}")
    try:
        return fit_power_law(rungs)
    except LawRefused as refusal:
        return refusal


def _observations(study: StudyResult, quantity: Quantity) -> list[Observation]:
    value = QUANTITIES[quantity]
    return [
        Observation(value(trial.perturbation), trial.effect, trial.seed, trial.weight)
        for trial in study.effects_in_norm
    ]
