"""Sets in ArrayRecord: builders that write them, the index beside the shards, what a set of TFDS holds."""
