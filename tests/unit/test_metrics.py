"""The metrics as Prometheus itself reads them: its parser, a real scrape, a real file."""

import dataclasses
import os
import socket
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from aerostat import __version__
from aerostat.metrics import MetricsExport
from tracer.record.live import VmStats
from tracer.trace.errors import AerostatError
from tracer.trace.schema import Queue

NOTHING = VmStats(
    name="quiet",
    pid=None,
    uuid=None,
    ts_ns=0,
    memory_bytes=None,
    actual_bytes=None,
    target_bytes=None,
    pages={},
    requests={},
    runs=0,
    discard_calls=None,
    discard_ns=None,
    discard_bytes=None,
    busy_ns=0,
    longest_ns=0,
    lost={},
    written_bytes=0,
    probe_ns=None,
)
BUSY = VmStats(
    name="web-1",
    pid=4242,
    uuid="1b4e28ba-2fa1-11d2-883f-0016d3cca427",
    ts_ns=0,
    memory_bytes=8 << 30,
    actual_bytes=3 << 30,
    target_bytes=1 << 30,
    pages={Queue.INFLATE: 512, Queue.DEFLATE: 256, Queue.FREE_PAGE_HINT: 1},
    requests={Queue.INFLATE: 2, Queue.DEFLATE: 1},
    runs=9,
    discard_calls=512,
    discard_ns=1_500_000_000,
    discard_bytes=512 * 4096,
    busy_ns=2_000_000_000,
    longest_ns=1_250_000_000,
    lost={"ring": 7, "quota": 0},
    written_bytes=4096,
    probe_ns=250_000_000.0,
)


def read(text):
    """{(metric, labels): value} of an exposition, and the type of each family."""
    families = list(text_string_to_metric_families(text))
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }
    assert len(samples) == sum(len(family.samples) for family in families), "no series twice"
    return samples, {family.name: family.type for family in families}


def exposed(*vms):
    with MetricsExport() as export:
        export.update(vms)
        return read(generate_latest(export._registry).decode())


def of(samples, name, **labels):
    return {
        key[1]: value
        for key, value in samples.items()
        if key[0] == f"aerostat_{name}" and labels.items() <= dict(key[1]).items()
    }


def only(samples, name, **labels):
    (value,) = of(samples, name, **labels).values()
    return value


def test_every_figure_in_base_units():
    samples, _ = exposed(BUSY)
    vm = {"vm": "web-1", "uuid": BUSY.uuid}
    assert only(samples, "vm_memory_bytes", **vm) == 8 << 30
    assert only(samples, "vm_actual_bytes", **vm) == 3 << 30
    assert only(samples, "vm_target_bytes", **vm) == 1 << 30
    assert only(samples, "moved_bytes_total", **vm, queue="inflate") == 512 * 4096
    assert only(samples, "moved_bytes_total", **vm, queue="free_page_hint") == 4096
    assert only(samples, "requests_total", **vm, queue="deflate") == 1
    assert only(samples, "runs_total", **vm) == 9
    assert only(samples, "request_seconds_total", **vm) == 2.0
    assert only(samples, "discard_calls_total", **vm) == 512
    assert only(samples, "discard_seconds_total", **vm) == 1.5
    assert only(samples, "discarded_bytes_total", **vm) == 512 * 4096
    assert only(samples, "vm_longest_request_seconds", **vm) == 1.25
    assert only(samples, "lost_events_total", **vm, cause="ring") == 7
    assert only(samples, "lost_events_total", **vm, cause="quota") == 0
    assert only(samples, "written_bytes_total", **vm) == 4096
    assert only(samples, "probe_seconds_total", **vm) == 0.25
    assert only(samples, "build_info", version=__version__) == 1


def test_no_field_is_forgotten():
    """A VmStats with one figure changed has another exposition."""
    before = exposed(BUSY)[0]
    for field in dataclasses.fields(VmStats):
        value = getattr(BUSY, field.name)
        if field.name in ("pid", "queues"):
            continue  # one shows only where two VMs have one name; the other tells of other figures
        if isinstance(value, dict):
            other = {key: item + 1 for key, item in value.items()}
        elif field.name == "ts_ns":
            other = value + 10**12
        else:
            other = value + ("x" if isinstance(value, str) else 1)
        after = exposed(dataclasses.replace(BUSY, **{field.name: other}))[0]
        stamp = "aerostat_vm_last_sample_timestamp_seconds"
        if field.name == "ts_ns":
            assert abs(only(after, stamp[9:]) - only(before, stamp[9:]) - 1000) < 5
            continue
        assert {k: v for k, v in after.items() if k[0] != stamp} != {
            k: v for k, v in before.items() if k[0] != stamp
        }, field.name


def test_counters_are_counters_and_gauges_are_gauges():
    samples, kinds = exposed(BUSY)
    for name, kind in kinds.items():
        assert kind in {"counter", "gauge"}, name
    for name, _ in samples:
        counter = name.removesuffix("_total") in kinds and kinds[name.removesuffix("_total")]
        assert (counter == "counter") == name.endswith("_total"), name
        unit = name.removesuffix("_total").rsplit("_", 1)[1]
        assert unit in {"bytes", "seconds", "requests", "runs", "calls", "events", "info"}, name


def test_what_was_not_observed_is_absent():
    samples, _ = exposed(NOTHING)
    assert {name for name, _ in samples} == {
        "aerostat_vm_last_sample_timestamp_seconds",
        "aerostat_vm_longest_request_seconds",
        "aerostat_runs_total",
        "aerostat_request_seconds_total",
        "aerostat_written_bytes_total",
        "aerostat_build_info",
    }


def test_a_vm_that_ended_disappears():
    with MetricsExport() as export:
        export.update([BUSY, NOTHING])
        assert "web-1" in generate_latest(export._registry).decode()
        export.update([NOTHING])
        assert "web-1" not in generate_latest(export._registry).decode()


def test_two_vms_of_one_name_stay_two():
    samples, _ = exposed(BUSY, dataclasses.replace(BUSY, pid=7), NOTHING)
    assert {dict(key)["vm"] for key in of(samples, "runs_total")} == {
        "web-1@4242",
        "web-1@7",
        "quiet",
    }


def test_a_hostile_name():
    name = 'a"b\\c\n\x1b[31m\ud800{}=,' + "x" * 1000
    samples, _ = exposed(dataclasses.replace(BUSY, name=name))
    (labels,) = of(samples, "runs_total")
    shown = dict(labels)["vm"]
    assert shown.startswith('a"b\\c')
    assert "\x1b" not in shown
    assert len(shown) == 128


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost"])
def test_a_real_scrape(address):
    with MetricsExport(listen=(address, 0)) as export:
        export.update([BUSY])
        host = f"[{address}]" if ":" in address else address
        with urllib.request.urlopen(f"http://{host}:{export.port}/metrics", timeout=5) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            samples, _ = read(answer.read().decode())
        assert only(samples, "runs_total", vm="web-1") == 9
    with pytest.raises(OSError):
        socket.create_connection((address, export.port), timeout=1).close()


def test_an_address_that_is_taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(AerostatError, match="cannot listen") as caught:
            MetricsExport(listen=("127.0.0.1", other.getsockname()[1]))
    assert "in use" in caught.value.reason
    assert "free" in caught.value.remedy


def test_the_file_is_always_whole(tmp_path):
    file = tmp_path / "aerostat.prom"
    stop = threading.Event()
    seen = []

    def look():
        while not stop.is_set():
            text = file.read_text()
            assert text.endswith("\n")
            seen.append(len(read(text)[0]))

    with MetricsExport(file=file) as export:
        reader = threading.Thread(target=look)
        reader.start()
        for _ in range(50):
            assert export.update([BUSY]) is None
            assert export.update([BUSY, NOTHING]) is None
            time.sleep(0.001)
        stop.set()
        reader.join()
        assert [path.name for path in tmp_path.iterdir()] == ["aerostat.prom"]
    assert len(set(seen)) > 1
    assert not file.exists()


def test_only_a_regular_file_is_replaced(tmp_path: Path) -> None:
    place = tmp_path / "a.prom"
    os.mkfifo(place)
    with pytest.raises(AerostatError, match="not written to") as caught:
        MetricsExport(file=place)
    assert "no regular file" in caught.value.reason
    assert place.is_fifo()


@pytest.mark.parametrize("place", ["metrics.txt", "no/such/dir.prom"])
def test_a_file_that_cannot_be(tmp_path, place):
    with pytest.raises(AerostatError) as caught:
        MetricsExport(file=tmp_path / place)
    assert caught.value.remedy


def test_a_file_that_can_no_longer_be_written(tmp_path):
    (tmp_path / "d").mkdir()
    with MetricsExport(file=tmp_path / "d" / "a.prom") as export:
        Path(tmp_path / "d" / "a.prom").unlink()
        (tmp_path / "d").rmdir()
        assert "No such file" in export.update([BUSY])
