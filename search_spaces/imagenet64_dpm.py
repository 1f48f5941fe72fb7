"""ImageNet at 64 pixels: quality against robustness over eta and K, for the public ADM.

    atdiff shards imagenet imagenet/train --out data/imagenet --resolutions 64
    atdiff import adm 64x64_diffusion.pt --preset adm_imagenet64 --out models/adm_imagenet64
    atdiff compare search_spaces/imagenet64_dpm.py

The arms of ``cifar10_dpm.py`` at the same amplitudes per element. Costs 17 x 3 trials of 1,920 kpass.
"""

from atdiff_core.networks import preset
from search_spaces.cifar10_dpm import comparison as cifar10
from search_spaces.comparison import Pretrained

comparison = cifar10.but(
    name="imagenet64-dpm",
    shards="data/imagenet",
    network=preset("adm_imagenet64", resolution=64, image_channels=3),
    pretraining=Pretrained(snapshot="models/adm_imagenet64"),
)
