"""Inception score of generated images, through torch-fidelity."""

from torch import Tensor

SPLITS = 10


def inception_score(class_logits: Tensor) -> float:
    """exp E KL(p(class | image) || p(class)) for logits ``[images, classes]``, mean of ten splits.

    Between 1 (all images get the same class probabilities) and the number of classes. It looks at
    the generated images alone. Salimans et al., arXiv:1606.03498.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric  # Imports torchvision.

    if len(class_logits) < SPLITS:
        raise ValueError(f"an inception score needs at least {SPLITS} images, got {len(class_logits)}")
    figures = isc_features_to_metric(class_logits, splits=SPLITS, shuffle=True, rng_seed=2020)
    return float(figures["inception_score_mean"])
