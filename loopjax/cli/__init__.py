"""Command lines: one file per family of commands."""
