"""Fuzz target: the text of a manifest, and the memory map in it.

Run alone: python -m tests.fuzz.manifest [CORPUS_OR_INPUT...] [libFuzzer options].
"""

from tests.fuzz.engine import explore, instrumented

with instrumented("tracer.trace", "replay.layout"):
    from replay.layout import MAX_MEMORY_BYTES, Layout
    from tracer.trace.errors import AerostatError
    from tracer.trace.manifest import Manifest


def one(data: bytes) -> None:
    """Read a manifest and lay its memory out; what is read must survive being written."""
    try:
        manifest = Manifest.from_json(data.decode("utf-8", "replace"))
        assert Manifest.from_json(manifest.to_json()) == manifest
        layout = Layout(manifest.regions)
    except AerostatError as problem:
        assert str(problem)
        return
    assert 0 < layout.guest_pages <= layout.memory_pages
    assert layout.memory_bytes < MAX_MEMORY_BYTES
    assert (layout.pages_of(layout.start_pfn) == layout.base_page).all()


if __name__ == "__main__":
    explore(one)
