"""What the compiler answered is kept, and used again only where that is safe and the same."""

import importlib.resources
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tracer.engine import compile_cache
from tracer.engine.compile_cache import compile_once
from tracer.engine.compile_process import compile_apart
from tracer.engine.compiled import Compiled
from tracer.engine.loader import Program
from tracer.errors import BccError

ROOT = Path(str(importlib.resources.files("bpf")))
TEXT = """
BPF_PERCPU_ARRAY(counters, u64, 7);
BPF_HASH(seen, u32, u64, 32);
int x(void *ctx) { u32 key = 1; seen.delete(&key); return 0; }
"""


@pytest.fixture
def compiled_times(monkeypatch, tmp_path: Path) -> list[str]:
    """Names of the sources that the real compiler was given."""
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    monkeypatch.delenv("AEROSTAT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    given: list[str] = []

    def counted(name: str, *arguments):
        given.append(name)
        return compile_apart(name, *arguments)

    monkeypatch.setattr(compile_cache, "compile_apart", counted)
    return given


def compiled(text: str = TEXT, *flags: str) -> Compiled:
    return compile_once("x.c", text, list(flags), ROOT)


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "aerostat/programs").iterdir())


def test_a_source_is_compiled_once(compiled_times: list[str], tmp_path: Path) -> None:
    first = compiled()
    assert compiled() == first
    assert compiled_times == ["x.c"]
    assert len(kept(tmp_path)) == 1
    assert first.functions["x"]
    assert first.maps["seen"].shape.max_entries == 32
    assert first.maps["counters"].leaf == "unsigned long long"


def test_another_text_or_flag_is_another_program(compiled_times: list[str], tmp_path: Path) -> None:
    one, other = compiled(TEXT, "-DK=1"), compiled(TEXT.replace("= 1", "= K"), "-DK=2")
    assert one != other
    assert compiled(TEXT.replace("= 1", "= K"), "-DK=1") != other
    assert len(compiled_times) == len(kept(tmp_path)) == 3


def test_the_host_program_from_the_cache_loads(compiled_times: list[str]) -> None:
    from tracer.sites.host_probes import compile_host

    with compile_host() as fresh:
        shapes = {name: each.shape for name, each in fresh._described.items()}
    with compile_host() as again:
        assert {name: each.shape for name, each in again._described.items()} == shapes
        assert all(again._load(name, 17) > 0 for name in ("on_raw_enter", "on_raw_exit"))
    assert len(compiled_times) == 1


def spoil_directory(file: Path) -> None:
    file.parent.chmod(0o770)


def spoil_mode(file: Path) -> None:
    file.chmod(0o606)


def spoil_owner(file: Path) -> None:
    os.chown(file, 65534, -1)


def spoil_directory_owner(file: Path) -> None:
    os.chown(file.parent, 65534, -1)


def spoil_by_link(file: Path) -> None:
    real = file.rename(file.parent.parent / "elsewhere")
    file.symlink_to(real)


def spoil_text(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def spoil_form(file: Path) -> None:
    answer = json.loads(file.read_text())
    answer["maps"][0]["shape"]["more"] = 1
    file.write_text(json.dumps(answer))


def spoil_kind(file: Path) -> None:
    file.write_text('{"functions": [], "maps": 7}')


SPOILERS = [
    spoil_directory,
    spoil_directory_owner,
    spoil_mode,
    spoil_owner,
    spoil_by_link,
    spoil_text,
    spoil_form,
    spoil_kind,
]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda each: each.__name__)
def test_what_others_may_have_written_is_not_used(
    compiled_times: list[str], tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    first = compiled()
    (file,) = kept(tmp_path)
    spoil(file)
    assert compiled() == first
    assert len(compiled_times) == 2


def test_a_place_that_cannot_be_had_is_no_error(compiled_times: list[str], monkeypatch) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", "/proc/1/nothing")
    assert compiled() == compiled()
    assert len(compiled_times) == 2


def test_a_full_disk_is_no_error(compiled_times: list[str], tmp_path: Path) -> None:
    place = tmp_path / "aerostat"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", "size=4k,mode=700", "tmpfs", str(place)]
    subprocess.run(["mount", *options], check=True)
    try:
        # More than the one page that there is room for.
        text = TEXT + "int y(void *ctx) { " + "bpf_ktime_get_ns();" * 2000 + "return 0; }"
        assert compiled(text) == compiled(text)
        assert len(compiled_times) == 2
        assert kept(tmp_path) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_old_ones_go(compiled_times: list[str], tmp_path: Path) -> None:
    compiled()
    (file,) = kept(tmp_path)
    for age in range(1, 30):
        old = file.with_name(f"{age:064x}.json")
        old.write_bytes(file.read_bytes())
        os.utime(old, (1000 + age, 1000 + age))
    os.utime(file, (0, 0))
    compiled()  # it is used, so it is young again
    compiled(TEXT, "-DK=9")
    names = {each.name for each in kept(tmp_path)}
    assert len(names) == 16
    assert file.name in names
    assert f"{29:064x}.json" in names
    assert f"{1:064x}.json" not in names


def test_what_is_not_ours_is_never_removed(compiled_times: list[str], tmp_path: Path) -> None:
    compiled()
    place = tmp_path / "aerostat/programs"
    for number in range(40):
        (place / f"{number}.txt").touch()
    compiled(TEXT, "-DK=9")
    assert len(list(place.glob("*.txt"))) == 40


def test_a_way_through_another_users_directory_is_not_used(
    compiled_times: list[str], tmp_path: Path
) -> None:
    first = compiled()
    os.chown(tmp_path / "aerostat", 65534, -1)
    assert compiled() == first
    os.chown(tmp_path / "aerostat", 0, -1)
    (tmp_path / "aerostat").chmod(0o777)
    assert compiled() == first
    assert len(compiled_times) == 3
    (tmp_path / "aerostat").chmod(0o1777)
    assert compiled() == first
    assert len(compiled_times) == 3


def test_what_lies_on_a_read_only_disk_is_used(compiled_times: list[str], tmp_path: Path) -> None:
    first = compiled()
    place = str(tmp_path / "aerostat")
    subprocess.run(["mount", "--bind", place, place], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        assert compiled() == first
    finally:
        subprocess.run(["umount", place], check=True)
    assert len(compiled_times) == 1


def test_an_error_is_not_kept(compiled_times: list[str], tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(BccError, match="cannot compile"):
            compiled("int x(void *ctx) { return nothing; }")
    assert len(compiled_times) == 2
    assert kept(tmp_path) == []


def test_maps_are_closed_with_the_program(compiled_times: list[str]) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    with Program(("host_vms.bpf.c",), {"MAX_VMS": 4}) as program:
        assert descriptors() > before
        assert program.map_fd("vms") >= 0
    assert descriptors() == before
