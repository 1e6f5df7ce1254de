"""What every strategy makes of every reference trace: counts that only a change of code moves."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from replay.backings import Advice
from replay.plan import Context, Plan, context_of
from replay.requests import load_requests, memory_map
from replay.strategies import STRATEGIES
from replay.strategies.base import Strategy
from tracer.trace.manifest import Region
from tracer.trace.reader import open_trace

TRACES = sorted((Path(__file__).parents[2] / "traces").glob("*.balloon"))
GOLDEN = Path(__file__).with_name("strategies.json")


def counts(plan: Plan) -> dict[str, Any]:
    kinds, uses = np.unique(plan.advice, return_counts=True)
    return {
        "operations": len(plan),
        "calls": plan.calls,
        "threads": plan.threads,
        "operations_by_advice": {
            Advice(int(kind)).name: int(use) for kind, use in zip(kinds, uses, strict=True)
        },
        "operation_bytes": int(plan.length_bytes.sum()),
        "protocol": plan.protocol,
        "wire_requests": int(plan.wire_requests),
        "wire_bytes": int(plan.wire_bytes),
    }


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    result = {}
    for path in TRACES:
        trace = open_trace(path)
        requests, regions = load_requests(trace), memory_map(trace)
        result[path.name] = {
            name: counts(strategy.plan(requests, where_it_works(strategy, regions)))
            for name, strategy in STRATEGIES.items()
        }
    return result


def where_it_works(strategy: Strategy, regions: Sequence[Region]) -> Context:
    """The trace's own memory; a memfd for what cannot work there."""
    own = context_of(regions)
    return own if strategy.refusal(own) is None else context_of(regions, "memfd")


def as_text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def test_strategies_do_what_they_did(found, request, capsys) -> None:
    before, now = GOLDEN.read_text() if GOLDEN.exists() else "", as_text(found)
    change = "".join(
        difflib.unified_diff(
            before.splitlines(keepends=True),
            now.splitlines(keepends=True),
            f"{GOLDEN.name} before",
            f"{GOLDEN.name} now",
        )
    )
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text(now)
        with capsys.disabled():
            print(f"\n{change or GOLDEN.name + ' is as it was'}")
        return
    assert not change, f"\n{change}\nIf this is meant: pytest tests/golden --update-golden"


def test_the_counts_are_those_of_the_wire(found) -> None:
    """Counts that hold whatever the strategy: no golden file may be updated past these."""
    for name, strategies in found.items():
        assert strategies["nop"]["operations"] == 0
        assert strategies["oracle"]["operations"] <= strategies["request"]["operations"], name
        assert strategies["request"]["operations"] <= strategies["qemu"]["operations"], name
        assert strategies["batch"]["operations"] <= strategies["adjacent"]["operations"], name
        assert strategies["vectored"]["calls"] < strategies["vectored"]["operations"], name
        for same in ("free", "remap"):
            alike = ("operations", "operation_bytes", "wire_requests")
            assert all(strategies[same][k] == strategies["request"][k] for k in alike), name
        sent = {s["wire_bytes"] for s in strategies.values() if s["protocol"] == "pfns"}
        assert len(sent) == 1, name


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_qemu_makes_the_calls_that_the_traced_qemu_made(path: Path, found) -> None:
    calls = open_trace(path).table("calls")
    recorded = calls.filter(pc.is_valid(calls["gpa"]))
    made = {
        Advice(row["advice"]).name: row["count_sum"]
        for row in recorded.group_by("advice").aggregate([("count", "sum")]).to_pylist()
    }
    assert found[path.name]["qemu"]["operations_by_advice"] == made
