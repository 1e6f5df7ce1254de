"""Samples of this kernel's memory and of real processes."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa

from tracer.record.samples import HostSampler, guest_sample
from tracer.trace.schema import SAMPLES, Side

MIB = 1 << 20


def test_a_guest_sample_fits_the_table_and_agrees_with_proc():
    sample = guest_sample()
    pa.RecordBatch.from_pylist([{"side": Side.GUEST, **sample}], schema=SAMPLES)
    names = {line.split()[0] for line in Path("/proc/vmstat").read_text().splitlines()}
    assert ("balloon_migrate_pages" in sample) == ("balloon_migrate" in names)
    assert 0 < sample["mem_available_bytes"] < os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    assert sample["alloc_stalls"] >= 0
    later = guest_sample()
    assert later["ts_ns"] > sample["ts_ns"]
    assert later["major_faults"] >= sample["major_faults"]


def test_stall_times_are_there_where_the_kernel_has_them():
    has_pressure = Path("/proc/pressure/memory").exists()
    for sample in (guest_sample(), HostSampler(os.getpid()).sample()):
        assert ("psi_some_us" in sample) == ("psi_full_us" in sample) == has_pressure
        if has_pressure:
            assert sample["psi_some_us"] >= sample["psi_full_us"] >= 0


def test_a_process_that_takes_memory_shows_it():
    sampler = HostSampler(os.getpid())
    before = sampler.sample()
    memory = mmap.mmap(-1, 64 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    for offset in range(0, len(memory), mmap.PAGESIZE):
        memory[offset] = 1
    after = HostSampler(os.getpid()).sample()
    assert after["rss_bytes"] - before["rss_bytes"] > 60 * MIB
    assert after["minor_faults"] - before["minor_faults"] >= 64 * MIB // mmap.PAGESIZE
    assert after["pss_bytes"] > 60 * MIB
    memory.close()
    pa.RecordBatch.from_pylist([{"side": Side.HOST, **after}], schema=SAMPLES)


def test_what_takes_long_is_read_less_often():
    sampler = HostSampler(os.getpid())
    first, second = sampler.sample(), sampler.sample()
    assert "pss_bytes" in first
    assert "anon_huge_bytes" in first
    assert "pss_bytes" not in second
    assert "rss_bytes" in second


def test_a_process_that_is_gone_has_no_sample():
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert HostSampler(child.pid).sample() is None
