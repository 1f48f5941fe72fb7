"""Features of the images that generated ones are compared with, computed once and kept."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from atdiff_core.data.stream import ShardSet
from atdiff_core.metrics.features import CACHED_AS, FeatureName, FeatureNetwork, features_of
from atdiff_core.metrics.judged_samples import PicturesOf
from atdiff_core.randomness import derived_seed


def reference_features(
    shards: ShardSet, limit: int, features: FeatureName, network: FeatureNetwork, cache: Path
) -> Tensor:
    """Features of a set's first images, ``[up to limit, num_features]``; latents count as the pictures they decode to.

    Args:
        cache: Folder in which they are kept, under the name of all that they depend on.
    """
    count = min(limit, shards.num_samples)
    file = cache / f"{CACHED_AS[features]}-{count}-{shards.fingerprint[:32]}.safetensors"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        pictures = PicturesOf(shards.index, str(next(network.parameters()).device))
        computed = features_of(map(pictures, shards.images(limit=count)), network)
        scratch = file.with_suffix(f".{derived_seed(id(computed))}")
        save_file({"features": computed}, scratch)
        scratch.replace(file)
    return load_file(file)["features"]
