"""Every test here is marked `aot`, which `make test` and `make test-slow` leave out."""

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/aot/" in item.path.as_posix():
            item.add_marker(pytest.mark.aot)
