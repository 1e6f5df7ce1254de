"""What a trace says of the machine that it was recorded on."""

import subprocess

import pytest

from tracer.record import machine
from tracer.record.machine import side_info


def test_a_side_tells_its_cpu() -> None:
    """As another program reads it from the kernel."""
    side = side_info(begin=(1, 2), end=None, detail="calls", probes=(), counters={})
    words = "awk -F': *' '/^model name/ { print $2; exit }' /proc/cpuinfo"
    told = subprocess.run(["sh", "-c", words], capture_output=True, text=True, check=True).stdout
    assert side.cpu_model == (told.strip() or None)


@pytest.mark.parametrize(
    ("cpuinfo", "model"),
    [
        (
            "processor\t: 0\nmodel\t\t: 17\nmodel name\t: EPYC 9R14\n\nmodel name\t: x\n",
            "EPYC 9R14",
        ),
        ("processor\t: 0\nCPU part\t: 0xd40\n", None),
        ("model name\t:\n", None),
        (None, None),
    ],
)
def test_where_the_kernel_tells_none_there_is_none(
    cpuinfo: str | None, model: str | None, monkeypatch
) -> None:
    monkeypatch.setattr(machine, "read_text", {"/proc/cpuinfo": cpuinfo}.get)
    assert machine.cpu_model() == model
