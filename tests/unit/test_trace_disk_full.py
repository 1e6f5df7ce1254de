"""A disk that fills up under the recorder, on a real small file system."""

import os
import subprocess

import numpy as np
import pytest

from tests.unit.trace_samples import described, request, requests
from tracer.trace.errors import TraceError
from tracer.trace.reader import open_trace
from tracer.trace.salvage import salvage
from tracer.trace.schema import Mark, Side
from tracer.trace.writer import TraceWriter

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def rows(first):
    """Runs that do not compress."""
    rng = np.random.default_rng(first)
    pfns = rng.integers(0, 1 << 19, (50, 256)).tolist()
    return requests(request(first + i, [(pfn, 1) for pfn in row]) for i, row in enumerate(pfns))


def test_a_full_disk(small_disk, tmp_path):
    writer = TraceWriter(small_disk / "a.balloon", Side.HOST, manifest=described())
    writer.mark(Mark.ATTACH, 1)
    appended = 0
    with pytest.raises(TraceError) as caught:
        while appended < 10**6:
            writer.append("requests", rows(appended))
            appended += 50
    assert "No space left" in caught.value.reason
    assert "free space" in caught.value.remedy
    assert str(writer.path) in caught.value.what
    assert appended > 0

    for again in (lambda: writer.append("requests", rows(0)), lambda: writer.close(described())):
        with pytest.raises(TraceError, match="cannot write"):
            again()
    writer.abort("too late to matter")

    trace = open_trace(writer.path)
    assert not trace.is_complete
    assert "No space left" in trace.manifest.end_reason
    assert trace.manifest.vm.name == "vm0"
    assert trace.table("requests")["seq"].to_pylist() == list(range(appended))
    assert trace.table("marks").num_rows == 1
    assert (writer.path / "marks" / "host-00001.arrow").exists()

    report = salvage(writer.path, tmp_path / "elsewhere.balloon")
    assert report.rows["requests"] == appended
    assert report.dropped_bytes == 0
    assert open_trace(report.path).manifest.end_reason.startswith("salvaged: write failed")


def test_a_disk_that_is_full_from_the_start(small_disk):
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "ballast").write_bytes(bytes(free))
    with pytest.raises(TraceError, match="cannot"):
        TraceWriter(small_disk / "a.balloon", Side.HOST)
