"""Programs of the compilers for TPUs and GPUs, which `make test-aot` installs; no device is needed.

A golden summary says what a training step does on each kind of mesh. It fails when a change makes
the program worse; `--update-golden` writes what is there now.
"""
