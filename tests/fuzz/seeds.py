"""The corpora that fuzzing begins with: real requests and files of the reference traces.

Run: python -m tests.fuzz.seeds TARGET DIRECTORY. Prints how many there are.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from replay.ranges import compact
from replay.requests import Requests, load_requests
from tests.fuzz import ring, trace, wire
from tests.hostile.machine import WRITE, chained, le32
from tests.unit.encoded import encode_pfns, encode_range_words, encode_scatterlist
from tests.unit.trace_samples import torn_trace
from tracer.trace.delta import Form
from tracer.trace.reader import open_trace
from tracer.trace.schema import DELTA_TABLES, TABLES, Queue

ROOT = Path(__file__).parents[2]
TRACES = sorted((ROOT / "traces").glob("*.balloon"))
REQUESTS = 12
"""Of each queue of each trace; more of the same kind would only slow the engine down."""
ROWS = 4


def write_corpus(target: str, place: Path) -> int:
    """Write a target's seeds, one a file; return how many."""
    made = {
        "wire": _wire,
        "ring": _ring,
        "segment": _segments,
        "manifest": _manifests,
        "trace": _trace,
    }[target]
    place.mkdir(parents=True)
    seeds = sorted(set(made(place)))
    for number, seed in enumerate(seeds):
        (place / f"seed-{number:04}").write_bytes(seed)
    return len(seeds)


def _some(requests: Requests, queue: Queue) -> Iterator[np.ndarray]:
    chosen = np.flatnonzero((requests.queue == queue) & (requests.pages > 0))
    for index in chosen[:: max(len(chosen) // REQUESTS, 1)][:REQUESTS].tolist():
        yield requests.pfns(index)


def _wire(_: Path) -> Iterator[bytes]:
    """Recorded requests in each form, and the same with their PFNs brought into small memory."""
    for path in TRACES:
        requests = load_requests(open_trace(path))
        for queue in (Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING):
            for pfns in _some(requests, queue):
                yield from _forms(queue, pfns)
                yield from _forms(queue, pfns % 160)
    stats = b"".join(tag.to_bytes(2, "little") + bytes(8) for tag in range(16))
    yield wire.head(Queue.STATS) + stats
    yield wire.head(Queue.FREE_PAGE_HINT) + le32(0x80000000)


def _forms(queue: Queue, pfns: np.ndarray) -> Iterator[bytes]:
    runs = compact(pfns)
    if queue == Queue.REPORTING:
        yield wire.head(queue) + encode_scatterlist(runs.start, runs.pages)[0]
        return
    yield wire.head(queue, memory=1) + encode_pfns(pfns[:256])[0]
    yield wire.head(queue, unit=1) + encode_pfns(pfns[:256])[0]
    yield wire.head(queue, "range_words") + encode_range_words(runs.start, runs.pages)[0]
    blocks = encode_scatterlist(runs.start, runs.pages)[0]
    yield wire.head(queue, "scatterlist") + blocks
    yield wire.head(queue, "scatterlist", unit=1, memory=1) + blocks


def _ring(_: Path) -> Iterator[bytes]:
    """The same requests in one descriptor, in two, and in an indirect table."""
    data = le32(*range(100, 140))
    tables = (
        [(0, len(data), 0)],
        [(0, 10, 0), (10, len(data) - 10, 0)],
        [(0, 4, 0), (64 << 12, 2 << 12, WRITE), (100 << 12, 1 << 12, WRITE)],
        [(0, 32, 4)],
    )
    inner = chained([(32, 40, 0), (72, 40, 0)])[:32] + data
    for queue in range(6):
        for table in tables:
            content = inner if table[0][2] == 4 else data
            raw = chained(table)[: ring.TABLE_BYTES].ljust(ring.TABLE_BYTES, b"\0")
            for protocol in range(len(ring.PROTOCOLS)):
                yield bytes([queue, protocol * (ring.ENTRIES + 1)]) + raw + content


def _manifests(_: Path) -> Iterator[bytes]:
    """Those of the reference traces, as they are and without what is long and of one kind."""
    for path in TRACES:
        document = json.loads((path / "manifest.json").read_text())
        yield json.dumps(document).encode()
        for key in ("probes", "segments", "losses"):
            document.pop(key, None)
        yield json.dumps(document).encode()


def _segments(place: Path) -> Iterator[bytes]:
    """The first rows of each table of the reference traces, in each form of theirs, or torn."""
    for number, name in enumerate(TABLES):
        forms = [Form(name), Form(name, delta=True)][: 1 + (name in DELTA_TABLES)]
        for path, form in itertools.product(TRACES, forms):
            for batch in open_trace(path).table(name).to_batches()[:1]:
                yield bytes([number]) + _segment(form.stored(batch.slice(0, ROWS)))
    for raw in _torn_parts(place):
        yield bytes([list(TABLES).index("requests")]) + raw


def _trace(place: Path) -> Iterator[bytes]:
    """Manifests and segments as above, each behind the number of the file that it replaces."""
    for manifest in _manifests(place):
        yield b"\0" + manifest
    for seed in _segments(place):
        table = list(TABLES)[seed[0]]
        found = [i for i, part in enumerate(trace.PARTS) if part.startswith(table)]
        for index in found:
            yield bytes([index]) + seed[1:]


def _torn_parts(place: Path) -> Iterator[bytes]:
    work = place.parent / "parts"
    work.mkdir()
    raw = torn_trace(work / "torn.balloon", batches=3, rows=2).read_bytes()
    for end in (len(raw) // 3, len(raw) - 7, len(raw)):
        yield raw[:end]


def _segment(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    raw: bytes = sink.getvalue().to_pybytes()
    return raw


if __name__ == "__main__":
    print(write_corpus(sys.argv[1], Path(sys.argv[2])))
