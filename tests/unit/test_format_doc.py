"""docs/trace-format.md says what the code does: every column, code, key, and the version."""

import re
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pytest

from tracer.trace import manifest, schema
from tracer.trace.manifest import Manifest
from tracer.trace.schema import (
    CODES,
    DELTA_TABLES,
    FINGERPRINT,
    FORMAT_VERSION,
    TABLES,
    fingerprint,
)

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "trace-format.md").read_text()
PARTS = [getattr(manifest, name) for name in manifest.__all__]
SECTIONS = {
    "Manifest": "## The manifest",
    "SideInfo": "### A side",
    "ProbeRecord": "### A probe",
    "VmInfo": "### The VM",
    "Region": "### A region",
    "Loss": "### A loss",
    "Segment": "### A segment",
    "LedgerLine": "### A ledger line",
    "Alignment": "### The alignment",
}


def section(title):
    """The text below a heading, up to the next heading."""
    assert f"\n{title}\n" in TEXT, title
    return re.split(r"\n##", TEXT.split(f"\n{title}\n", 1)[1])[0]


@pytest.mark.parametrize("table", TABLES)
def test_every_column_with_its_type_and_unit(table):
    rows = re.findall(
        r"^\| `(\w+)` \| ([^|]+) \| (yes|no) \| ([^|]+) \| [^|]+ \|$", section(f"### {table}"), re.M
    )
    expected = []
    for column in TABLES[table]:
        kind = str(column.type)
        if pa.types.is_list(column.type):
            kind = "list of {pfn: uint64, pages: int32}"
        unit = column.metadata[b"unit"].decode()
        expected.append((column.name, kind, "yes" if column.nullable else "no", unit))
    assert rows == expected


def test_every_column_of_differences():
    rows = re.findall(
        r"^\| (\w+) \| `(\w+)` \| `(\w+)` \| ([^|]+) \| (yes|no) \| ([^|]+) \|$",
        section("## Segments of differences"),
        re.M,
    )
    expected = []
    for table, columns in DELTA_TABLES.items():
        for column in columns:
            if any(column.equals(plain, check_metadata=True) for plain in TABLES[table]):
                continue
            kind = str(column.type)
            if pa.types.is_list(column.type):
                kind = "list of {pfn_delta: int64, pages: int32}"
            plain = column.name.partition("_delta")[0]
            null = "yes" if column.nullable else "no"
            unit = column.metadata[b"unit"].decode()
            expected.append((table, plain, column.name, kind, null, unit))
    assert rows == expected


@pytest.mark.parametrize("kind", CODES, ids=lambda kind: kind.__name__)
def test_every_code(kind):
    rows = re.findall(r"^\| (\d+) \| (\w+) \| [^|]+ \|$", section(f"### {kind.__name__}"), re.M)
    assert rows == [(str(int(code)), code.name) for code in kind]


def test_every_enumeration_of_the_schema_is_in_codes():
    found = {
        item
        for item in vars(schema).values()
        if isinstance(item, type) and issubclass(item, schema.IntEnum) and len(item)
    }
    assert found == set(CODES)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_manifest_key(part):
    text = section(SECTIONS[part.__name__])
    missing = [item.name for item in fields(part) if f"`{item.name}`" not in text]
    assert missing == ["extra"]


def test_no_manifest_key_that_is_not_there():
    keys = re.findall(r"^\| `(\w+)` \|", section("## The manifest"), re.M)
    assert set(keys) == {item.name for item in fields(Manifest)} - {"extra"}


def test_every_finding_code():
    """Codes are read out of the source: findings are made by error() and warning()."""
    sources = (ROOT / "tracer" / "trace").glob("*.py")
    made = {
        code
        for path in sources
        for code in re.findall(r"\b(?:error|warning)\(\s*\"([a-z-]+)\"", path.read_text())
    }
    assert len(made) > 20
    assert {code for code in made if f"`{code}`" not in section("## Findings")} == set()


def test_a_change_of_the_schema_needs_a_new_version():
    """If this fails: raise FORMAT_VERSION, set FINGERPRINT, add a line to the history."""
    assert fingerprint() == FINGERPRINT
    assert f"| {FORMAT_VERSION} | `{FINGERPRINT}` |" in section("## Versions")
    assert f"version {FORMAT_VERSION}" in TEXT.splitlines()[0]


@pytest.mark.parametrize(("tables", "table"), [(TABLES, "marks"), (DELTA_TABLES, "calls")])
def test_the_fingerprint_sees_a_changed_column(monkeypatch, tables, table):
    more = tables[table].append(pa.field("x", pa.int8(), metadata={"unit": "ns"}))
    monkeypatch.setitem(tables, table, more)
    assert fingerprint() != FINGERPRINT


@pytest.mark.parametrize(
    "constant", ["16 MiB", "32 deep", "1 GiB", "64 times", "64 MiB, after 60 s"]
)
def test_the_bounds_are_those_of_the_code(constant):
    from tracer.trace.layout import MAX_SEGMENT_BYTES
    from tracer.trace.manifest import MAX_DEPTH, MAX_MANIFEST_BYTES
    from tracer.trace.segment_reader import FREE_BYTES, MAX_EXPANSION
    from tracer.trace.storage import Storage

    assert constant in TEXT
    assert (MAX_MANIFEST_BYTES, MAX_DEPTH, MAX_SEGMENT_BYTES) == (16 << 20, 32, 1 << 30)
    assert (MAX_EXPANSION, FREE_BYTES) == (64, 64 << 20)
    assert (Storage().rotate_bytes, Storage().rotate_ns) == (64 << 20, 60 * 10**9)
