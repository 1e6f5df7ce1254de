"""bpf/records.h is the only definition of the records: numpy's layouts must be its layouts."""

import re
import subprocess
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest

from tracer.engine import decode, decode_calls, vm_probes
from tracer.guest_side import guest_events
from tracer.sites import guest_probes

HEADER = Path(__file__).parents[2] / "bpf" / "records.h"
LAYOUTS = {
    "host_request": decode.HOST_REQUEST,
    "host_calls": decode.HOST_CALLS,
    "host_call": decode_calls.HOST_CALL,
    "guest_request": decode.GUEST_REQUEST,
    "guest_event": guest_events.GUEST_EVENT,
}


def compiled(tmp_path: Path, body: str) -> dict[str, int]:
    """Compile and run a C program that prints `name value` lines."""
    source = tmp_path / "layout.c"
    source.write_text(
        f'#include <stdio.h>\n#include <stddef.h>\n#include "{HEADER}"\n'
        f"int main(void) {{\n{body}\n}}\n"
    )
    program = tmp_path / "layout"
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", program, source], check=True)
    text = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


@pytest.mark.parametrize("struct", LAYOUTS)
def test_numpy_layout_is_the_c_layout(struct: str, tmp_path: Path) -> None:
    layout: np.dtype = LAYOUTS[struct]
    names = layout.names or ()
    lines = [f'printf("sizeof %zu\\n", sizeof(struct {struct}));']
    for name in names:
        lines.append(f'printf("{name} %zu\\n", offsetof(struct {struct}, {name}));')
    seen = compiled(tmp_path, "\n".join(lines) + "\nreturn 0;")
    assert seen.pop("sizeof") == layout.itemsize
    assert seen == {name: layout.fields[name][1] for name in names}


@pytest.mark.parametrize("struct", LAYOUTS)
def test_numpy_names_every_field(struct: str) -> None:
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    body = re.search(rf"struct {struct} {{(.*?)^}};", text, re.S | re.M).group(1)
    fields = re.findall(r"(\w+);", body)
    assert fields == list(LAYOUTS[struct].names)


@pytest.mark.parametrize(
    ("enum", "prefix", "end"),
    [
        (vm_probes.Count, "HOST_", "HOST_COUNTS"),
        (vm_probes.Event, "EVENT_", "HOST_EVENTS"),
        (guest_probes.Count, "GUEST_", "GUEST_COUNTS"),
        (guest_events.EventKind, "GUEST_EVENT_", "GUEST_EVENT_KINDS"),
    ],
)
def test_indices_are_those_of_the_header(
    enum: type[IntEnum], prefix: str, end: str, tmp_path: Path
) -> None:
    names = [member.name for member in enum]
    lines = [f'printf("{name} %d\\n", {prefix}{name});' for name in names]
    lines.append(f'printf("end %d\\n", {end});')
    seen = compiled(tmp_path, "\n".join(lines) + "\nreturn 0;")
    assert seen == {member.name: int(member) for member in enum} | {"end": len(enum)}


def test_a_request_of_one_page_is_the_head_of_a_request(tmp_path: Path) -> None:
    body = 'printf("size %zu\\n", GUEST_SINGLE_BYTES);\nreturn 0;'
    assert compiled(tmp_path, body) == {"size": decode.GUEST_SINGLE.itemsize}
    whole, single = decode.GUEST_REQUEST, decode.GUEST_SINGLE
    for name in (single.names or ())[:-2]:
        assert single.fields[name] == whole.fields[name]
    assert single.fields["pfn"][1] == whole.fields["payload"][1]


def test_limits_agree(tmp_path: Path) -> None:
    body = "\n".join(
        f'printf("{name} %d\\n", {name});'
        for name in ("AEROSTAT_PFNS", "AEROSTAT_ENTRIES", "AEROSTAT_CHUNKS")
    )
    seen = compiled(tmp_path, body + "\nreturn 0;")
    assert seen == {
        "AEROSTAT_PFNS": decode.PFNS,
        "AEROSTAT_ENTRIES": decode.ENTRIES,
        "AEROSTAT_CHUNKS": decode.CHUNKS,
    }
