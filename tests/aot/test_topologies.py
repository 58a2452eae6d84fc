"""Devices that are not there, by the compiler that knows them."""

import pytest

from loopjax.aot import topologies
from tests.aot.steps import compiled_step


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


def test_a_program_that_does_not_fit_is_a_row_and_not_an_error(tmp_path):
    (row,) = compiled_step("v5e:1x1", tmp_path, batch_size=65536, mesh__fsdp=1)["programs"]
    assert row["fits"] is False
    assert "HBM" in row["error"]
