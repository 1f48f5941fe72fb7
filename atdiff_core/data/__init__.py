"""From pictures to minibatches: sources, shards with an index, and the exact stream."""
