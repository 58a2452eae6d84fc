"""Too little disk, memory or file descriptors: a sentence, and nothing lost."""

import os
import pathlib
import subprocess

import pytest

from tests.faults import runs
from tests.faults.test_kills import cluster, whole

__all__ = ["cluster", "whole"]


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system of some kilobytes; it is unmounted at the end."""
    mounted = []

    def mount(kilobytes: int) -> pathlib.Path:
        path = tmp_path / f"disk{kilobytes}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path)]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a file system cannot be mounted here")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.parametrize("kilobytes", [150, 250, 400, 600])
def test_a_full_disk_is_a_sentence_and_more_space_resumes(
    cluster, whole, small_disk, outcome, kilobytes
):
    disk = small_disk(kilobytes)
    code, err = cluster.run(disk / "run")
    assert code == 2 and "Traceback" not in err, err
    assert err.splitlines()[-1].startswith("loopjax train: ") and "space" in err, err
    more = ["mount", "-o", "remount,size=64m", str(disk)]
    subprocess.run(more, check=True)
    code, err = cluster.run(disk / "run")
    assert code == 0, err
    runs.assert_same(disk / "run", whole)
    outcome("resources", f"disk full ({kilobytes} kB)", "a sentence; resumed to the same bits")


def test_a_disk_that_becomes_read_only_is_a_sentence(cluster, small_disk, outcome):
    disk = small_disk(64_000)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    code, err = cluster.run(disk / "run")
    assert code == 2 and "Traceback" not in err and "read-only" in err.lower(), err
    outcome("resources", "read-only workdir", "a sentence")


@pytest.mark.parametrize("descriptors", [20, 24, 32, 48, 64, 100, 200])
def test_few_file_descriptors_are_a_sentence_or_enough(
    cluster, whole, tmp_path, outcome, descriptors
):
    code, err = cluster.run(tmp_path, limits={"RLIMIT_NOFILE": descriptors})
    outcome("resources", f"{descriptors} file descriptors", told(code, err, tmp_path, whole))
    code, err = cluster.run(tmp_path)
    assert code == 0, err
    runs.assert_same(tmp_path, whole)


def told(code, err, workdir, whole) -> str:
    if code == 0:
        runs.assert_same(workdir, whole)
        return "same bits"
    assert code == 2 and "Traceback" not in err, (code, err)
    return "a sentence; resumed to the same bits"
