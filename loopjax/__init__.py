"""loopjax: transformers that loop and transformers that are grown, in JAX."""
