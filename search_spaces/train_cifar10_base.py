"""The ADM that AT_Diff fine-tunes on CIFAR-10, for ``atdiff train``: 250,000 plain minibatches.

    atdiff shards cifar10 cifar-10-batches-bin --out data/cifar10 --resolutions 32
    atdiff train search_spaces/train_cifar10_base.py --shards data/cifar10/32px --out runs/cifar10_base

Cost: 250,000 x 128 = 32,000 kpass. Plain fine-tuning on from here, which the paper's table needs
beside AT, is this file with ``--start`` and the budget of ``train_cifar10_at.py``.
"""

from atdiff_core.perturbations import Unperturbed
from search_spaces.train_cifar10_at import batch_size, evaluation, train

budget_kpass = 250_000 * batch_size / 1000
config = {
    "train": train | {"perturbation": Unperturbed(), "budget_kpass": budget_kpass},
    "evaluation": evaluation,
}
