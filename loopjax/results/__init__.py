"""Result files: written, resumed and read back."""
