"""Precision and recall of generated images, through torch-fidelity."""

from dataclasses import dataclass

from torch import Tensor

NEIGHBOURS = 3


@dataclass(frozen=True)
class PrecisionRecall:
    """How many generated images look real, and how many real ones could have been generated.

    Attributes:
        precision: Fraction of the generated features inside the estimated manifold of the
            reference: within the distance of some reference feature to its third neighbour.
        recall: The same with the sets exchanged.

    Source:
        Kynkäänniemi et al., arXiv:1904.06991. Both depend on the number of images, and on the
        feature network: the published figures are of VGG-16 or, with ADM, of Inception features.
    """

    precision: float
    recall: float


def precision_recall(generated: Tensor, reference: Tensor) -> PrecisionRecall:
    """Precision and recall of features ``[images, num_features]``, with equally many of each.

    The larger set is cut to the size of the smaller. The cost grows with the square of the number.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric  # Imports torchvision.

    count = min(len(generated), len(reference))
    if count <= NEIGHBOURS:
        raise ValueError(f"precision and recall need at least {NEIGHBOURS + 1} images of each kind, got {count}")
    figures = prc_features_to_metric(
        generated[:count].float(),
        reference[:count].float(),
        prc_neighborhood=NEIGHBOURS,
        save_cpu_ram=True,
        verbose=False,
    )
    return PrecisionRecall(figures["precision"], figures["recall"])
