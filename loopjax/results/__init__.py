"""Result files: their schemas, writing, resuming and reading."""
