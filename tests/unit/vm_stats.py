"""Two readings of one VM, two seconds apart, for tests of what is made of them."""

from dataclasses import replace

from tracer.record.live import VmStats
from tracer.trace.schema import Queue

S = 1_000_000_000
GIB = 1 << 30

BEFORE = VmStats(
    name="web-1",
    pid=77,
    uuid="6b3f1de0-0000-4000-8000-000000000001",
    ts_ns=100 * S,
    memory_bytes=8 * GIB,
    actual_bytes=6 * GIB,
    target_bytes=2 * GIB,
    pages={Queue.INFLATE: 1000},
    requests={Queue.INFLATE: 10},
    runs=20,
    discard_calls=1000,
    discard_ns=1_000_000,
    discard_bytes=1000 * 4096,
    busy_ns=3_000_000,
    longest_ns=400_000,
    lost={"ring": 100, "quota": 0},
    written_bytes=0,
    probe_ns=500_000.0,
    queues=frozenset({Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING}),
)
AFTER = replace(
    BEFORE,
    ts_ns=102 * S,
    actual_bytes=5 * GIB,
    pages={Queue.INFLATE: 1000 + 256_000, Queue.REPORTING: 512},
    requests={Queue.INFLATE: 10 + 1000, Queue.REPORTING: 1},
    runs=20 + 3000,
    discard_calls=1000 + 256_512,
    discard_ns=1_000_000 + 400_000_000,
    discard_bytes=(1000 + 256_512) * 4096,
    busy_ns=3_000_000 + 1_200_000_000,
    longest_ns=1_900_000,
    lost={"ring": 180, "quota": 20},
    probe_ns=500_000.0 + 60_000_000,
)
