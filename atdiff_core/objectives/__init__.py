"""Training losses: one value per sample, with drawing and evaluating kept apart."""

from typing import Annotated

from pydantic import Field

from atdiff_core.objectives.consistency import ConsistencyDistillation, ConsistencyTraining
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.objectives.edm import EDM
from atdiff_core.objectives.equivariant import Equivariant
from atdiff_core.objectives.latent_consistency import LatentConsistencyDistillation

Objective = Annotated[
    Denoising | Equivariant | EDM | ConsistencyDistillation | ConsistencyTraining | LatentConsistencyDistillation,
    Field(discriminator="kind"),
]
