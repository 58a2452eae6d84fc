"""Data: tokenizers, token shards, built-in sources, and the pipeline that mixes them."""
