"""Depth diagnostics: where a model computes, and which of its layers matter."""
