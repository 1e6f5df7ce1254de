"""Where routines of our own lie: by their bytes alone, and never one upon the other."""

from tracer.cost import machine_code
from tracer.cost.machine_code import SYSTEM_CALLS, MachineCode, loop

NOP, PUSH = loop(b"\x90"), loop(b"\x50\x58")


def offsets(routines: dict[str, bytes]) -> dict[str, int]:
    code = MachineCode(routines)
    try:
        text = code.path.read_bytes()
        found = {name: code.offset(name) for name in routines}
        for name, body in routines.items():
            assert text[found[name] :].startswith(body)
        return found
    finally:
        code.close()


def test_a_routine_lies_where_its_bytes_say_in_whatever_file():
    one = offsets({"nop": NOP, "push": PUSH, "calls": SYSTEM_CALLS})
    other = offsets({"a": SYSTEM_CALLS, "b": PUSH, "c": NOP})
    assert (one["nop"], one["push"], one["calls"]) == (other["c"], other["b"], other["a"])
    assert len(set(one.values())) == 3


def test_routines_that_would_lie_upon_each_other_are_moved(monkeypatch):
    monkeypatch.setattr(machine_code.zlib, "crc32", lambda code: (1 << 32) - 1)
    found = offsets({"long": b"\x90" * 200, "nop": NOP, "push": PUSH})
    assert found["long"] == 0  # There is no room for it in the last place.
    assert found["nop"] == 4095 * 64
    assert found["push"] == 4 * 64


def test_the_same_code_twice_has_two_places():
    found = offsets({"a": NOP, "b": NOP})
    assert found["a"] != found["b"]
