"""A language model loaded from a checkpoint: scoring, decoding, batching."""
