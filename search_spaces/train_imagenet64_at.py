"""Adversarial fine-tuning of the public ADM for ImageNet at 64 pixels, for ``atdiff train``.

    atdiff shards imagenet imagenet/train --out data/imagenet --resolutions 64
    atdiff import adm 64x64_diffusion.pt --preset adm_imagenet64 --out models/adm_imagenet64
    atdiff train search_spaces/train_imagenet64_at.py --shards data/imagenet/64px --start models/adm_imagenet64 \\
        --out runs/imagenet64_at --slice-size 32 --channels-last

AT_Diff gives no settings for ImageNet. Network, schedule and dropout are ADM's; batch, learning
rate, K and the 200,000 minibatches are those of its CIFAR-10 script; the step is its CIFAR-10
step at equal amplitude per element (raw norm 0.2). That choice is ours: a second-hand account of
the paper names a raw norm of 0.5.
Cost: 200,000 x 3 x 128 = 76,800 kpass.
"""

from atdiff_core.balls import L2Ball
from atdiff_core.networks import preset
from atdiff_core.perturbations import FreeAT
from search_spaces.train_cifar10_at import evaluation, num_replays, step_size, train

config = {
    "train": train
    | {
        "network": preset("adm_imagenet64", resolution=64, image_channels=3),
        "perturbation": FreeAT(ball=L2Ball(radius=0.1), num_replays=num_replays, step_size=step_size),
    },
    "evaluation": evaluation,
}
