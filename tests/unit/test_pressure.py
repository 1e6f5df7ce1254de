"""Samples summed up: levels by their ends and extremes, counts by how they grew."""

from pathlib import Path

import pyarrow as pa

from aerostat.pressure import Growth, Level, growths, levels
from aerostat.timeline_tables import draw_samples
from tests.unit.trace_samples import described
from tracer.trace.reader import Trace, open_trace
from tracer.trace.schema import SAMPLES, Side
from tracer.trace.writer import TraceWriter

S = 1_000_000_000


def trace_of(path: Path, *rows: dict) -> Trace:
    with TraceWriter(path / "a.balloon", Side.HOST) as writer:
        items = [{"side": Side.HOST, **row} for row in rows]
        writer.append("samples", pa.RecordBatch.from_pylist(items, schema=SAMPLES))
        writer.close(described())
    return open_trace(writer.path)


def test_a_level_has_ends_and_extremes_over_the_rows_that_have_it(tmp_path):
    sizes = (500, 900, None, 100, 400)
    trace = trace_of(tmp_path, *({"ts_ns": i, "rss_bytes": size} for i, size in enumerate(sizes)))
    assert levels(trace) == (
        Level(Side.HOST, "rss_bytes", samples=4, begin=500, end=400, least=100, most=900),
    )


def test_a_count_has_growth_and_rates_over_the_true_time_between_samples(tmp_path):
    times = (0, S, 3 * S, 4 * S)
    faults = (1000, 1500, 1700, 3700)
    rows = [{"ts_ns": t, "minor_faults": n} for t, n in zip(times, faults, strict=True)]
    assert growths(trace_of(tmp_path, *rows)) == (
        Growth(Side.HOST, "minor_faults", 4, grown=2700, mean_per_s=675.0, most_per_s=2000.0),
    )


def test_one_sample_has_no_rate(tmp_path):
    (growth,) = growths(trace_of(tmp_path, {"ts_ns": 5, "psi_some_us": 77}))
    assert (growth.grown, growth.mean_per_s, growth.most_per_s) == (0, None, None)


def test_every_column_is_a_level_or_a_count(tmp_path):
    columns = [name for name in SAMPLES.names if name not in ("side", "ts_ns")]
    trace = trace_of(tmp_path, {"ts_ns": 1, **dict.fromkeys(columns, 3)})
    told = [item.column for item in (*levels(trace), *growths(trace))]
    assert sorted(told) == sorted(columns)


def test_hostile_samples_are_no_error(tmp_path, capsys):
    most = (1 << 64) - 1
    rows = [
        {"ts_ns": 5, "minor_faults": most, "rss_bytes": most},
        {"ts_ns": 5, "minor_faults": 0, "rss_bytes": 0},
        {"ts_ns": -(1 << 63), "minor_faults": 7},
    ]
    trace = trace_of(tmp_path, *rows)
    draw_samples(levels(trace), growths(trace))
    assert "minor faults" in capsys.readouterr().out


def test_what_was_not_sampled_draws_nothing(tmp_path, capsys):
    trace = trace_of(tmp_path)
    draw_samples(levels(trace), growths(trace))
    assert capsys.readouterr().out == ""
