"""Weights on disk: `loopjax inspect`."""
