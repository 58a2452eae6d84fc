"""Devices that are not there, by the compiler that knows them."""

import subprocess
import sys

import pytest

from loopjax import run
from loopjax.aot import topologies
from loopjax.config import default
from loopjax.errors import UserError
from tests.aot.steps import ROOT, compiled_step


@pytest.mark.parametrize(
    ("name", "devices", "domains"),
    [
        ("v4:2x2x1", 4, 1),
        ("v5e:1x1", 1, 1),
        ("v5e:16x16", 256, 1),
        ("v5p:4x4x4", 64, 1),
        ("v5p:2x2x1,slices=2", 8, 2),
        ("v6e:2x4", 8, 1),
    ],
)
def test_a_slice_has_a_device_per_chip_and_a_domain_per_slice(name, devices, domains):
    pytest.importorskip("libtpu")
    read = topologies.read(name)
    topologies.set_environment(read)
    topology = topologies.topology(read)
    assert len(topology.devices) == devices
    assert len({topology.domain(device) for device in topology.devices}) == domains
    kinds = {device.device_kind for device in topology.devices}
    assert all(kind.startswith(topology.chip.kinds) for kind in kinds)


GPUS = """
import sys
from loopjax import run
from loopjax.aot import topologies
from loopjax.config import default
from loopjax.errors import UserError
names = [topologies.read(name) for name in sys.argv[1:]]
topologies.set_environment(names[0])
found = [topologies.topology(name) for name in names]
for topology in found:
    domains = {topology.domain(device) for device in topology.devices}
    assert all(d.device_kind.startswith(topology.chip.kinds) for d in topology.devices)
    print(topology.name, len(topology.devices), len(domains))
import jax
for topology in found:
    where = jax.sharding.SingleDeviceSharding(topology.devices[0])
    matrix = jax.ShapeDtypeStruct((1024, 1024), "bfloat16", sharding=where)
    assert "fusion" in jax.jit(lambda x: x @ x).lower(matrix).compile().as_text()
"""


def test_gpus_of_every_kind_can_be_compiled_for():
    """In a process of its own: see `topologies.topology`."""
    pytest.importorskip("jax_cuda13_plugin")
    names = ["a100:1x8", "a100-40gb:2x4", "h100:8x8", "h200:2x8", "b200:1x8"]
    done = subprocess.run(
        [sys.executable, "-c", GPUS, *names], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = ["a100:1x8 8 1", "a100-40gb:2x4 8 2", "h100:8x8 64 8", "h200:2x8 16 2"]
    assert done.stdout.splitlines() == [*expected, "b200:1x8 8 1"]


def test_a_mesh_that_a_slice_cannot_have_is_one_sentence():
    pytest.importorskip("libtpu")
    name = topologies.read("v5p:4x4x4")
    topologies.set_environment(name)
    config = default()
    config.mesh.update(data=4, fsdp=16)
    planned, devices = run.outline(config), topologies.topology(name).devices
    assert run.place(planned, devices).mesh.shape["fsdp"] == 16
    planned.config.mesh.update(data=8, fsdp=8)
    with pytest.raises(
        UserError, match=r"data=8, fsdp=8, tensor=1\) does not fit a TPU slice of 4x4x4"
    ):
        run.place(planned, devices)


def test_a_program_that_does_not_fit_is_a_row_and_not_an_error(tmp_path):
    (row,) = compiled_step("v5e:1x1", tmp_path, batch_size=65536, mesh__fsdp=1)["programs"]
    assert row["fits"] is False
    assert "HBM" in row["error"]
