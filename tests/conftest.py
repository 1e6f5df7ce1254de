"""Which tests can run here, said aloud.

Every directory under tests/ is a tier. Tests in memory/, kernel/ and vm/ get the marker of that
name. AEROSTAT_PRIVILEGED_TESTS decides about the kernel and vm tiers:

    unset   try; skip with the reason where the machine lacks something
    0       skip them all, and say so
    1       the machine is meant to have everything: any skip, in any tier, that is not listed in
            tests/expected_skips.toml is a failure
"""

import fnmatch
import importlib.util
import os
import shutil
import tomllib
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import hypothesis
import pytest

TESTS = Path(__file__).parent
TIERS = (
    "unit",
    "property",
    "memory",
    "hostile",
    "fuzz",
    "golden",
    "kernel",
    "vm",
    "notebooks",
)
MARKED = {"memory", "kernel", "vm"}
PRIVILEGED = {"kernel", "vm"}
VARIABLE = "AEROSTAT_PRIVILEGED_TESTS"
MODE = os.environ.get(VARIABLE)
# How long an example takes is the machine's doing, and what else runs on it.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def all_cpus():
    """Give back what CPUs a test leaves itself: a run pins its process, which is a test's here.

    What follows would run on one CPU, the guests of the vm tier with it.
    """
    allowed = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, allowed)


@cache
def lacking(tier: str) -> str:
    """Say what this machine lacks for a privileged tier; empty when it lacks nothing."""
    if os.geteuid() != 0:
        return "needs root"
    if importlib.util.find_spec("bcc") is None:
        return "needs BCC (apt install python3-bpfcc) and a venv with system site packages"
    if not hasattr(importlib.import_module("bcc"), "BPF"):
        return "the bcc package found is not BCC; remove it and apt install python3-bpfcc"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "needs a kernel with BTF (CONFIG_DEBUG_INFO_BTF)"
    if tier == "vm" and shutil.which("qemu-system-x86_64") is None:
        return "needs qemu-system-x86_64 (apt install qemu-system-x86)"
    return ""


def tier_of(path: Path) -> str:
    """The tier is the first directory below tests/."""
    parts = path.relative_to(TESTS).parts if path.is_relative_to(TESTS) else ()
    return parts[0] if len(parts) > 1 else ""


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite tests/golden/strategies.json and print what changed",
    )


def pytest_configure(config):
    if MODE not in {None, "0", "1"}:
        raise pytest.UsageError(f"{VARIABLE} is {MODE!r}; it must be unset, 0 or 1")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Tiers(), "tiers")


def pytest_collection_modifyitems(config, items):
    for item in items:
        tier = tier_of(item.path)
        if tier in MARKED:
            item.add_marker(tier)
        if tier in PRIVILEGED:
            if MODE == "0":
                item.add_marker(pytest.mark.skip(reason=f"{VARIABLE}=0"))
            elif reason := lacking(tier):
                item.add_marker(pytest.mark.skip(reason=reason))


@cache
def expected_skips() -> tuple[tuple[str, str], ...]:
    """Pairs of test id pattern and reason pattern from expected_skips.toml."""
    listed = tomllib.loads((TESTS / "expected_skips.toml").read_text()).get("skip", [])
    return tuple((entry["test"], entry["reason"]) for entry in listed)


def is_expected(nodeid: str, reason: str) -> bool:
    return any(
        fnmatch.fnmatchcase(nodeid, test) and fnmatch.fnmatchcase(reason, f"*{why}*")
        for test, why in expected_skips()
    )


def skip_reason(report) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def refuse_unexpected_skip(report) -> None:
    """Turn a skip into a failure on a machine that is meant to run everything."""
    if MODE != "1" or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = skip_reason(report)
    if not is_expected(report.nodeid, reason):
        report.outcome = "failed"
        report.longrepr = f"{VARIABLE}=1 and this skip is not in expected_skips.toml: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    report = yield
    refuse_unexpected_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    report = yield
    refuse_unexpected_skip(report)
    return report


class Tiers:
    """Counts reports by tier, of this process or of the workers that tests are shared among."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Counter] = defaultdict(Counter)
        self.reasons: dict[str, Counter] = defaultdict(Counter)

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self.count(report)

    def pytest_collectreport(self, report):
        if report.outcome != "passed":
            self.count(report)

    def count(self, report):
        tier = tier_of(TESTS.parent / report.nodeid.split("::")[0])
        self.outcomes[tier][report.outcome] += 1
        if report.skipped and not hasattr(report, "wasxfail"):
            self.reasons[tier][skip_reason(report)] += 1

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("tiers")
        for tier in TIERS:
            counts = self.outcomes.get(tier)
            if not counts:
                terminalreporter.write_line(f"{tier:<10} not run")
                continue
            line = ", ".join(f"{counts[name]} {name}" for name in ("passed", "failed", "skipped"))
            terminalreporter.write_line(f"{tier:<10} {line}")
            for reason, count in self.reasons[tier].most_common():
                terminalreporter.write_line(f"{'':<10}   {count} skipped: {reason}")
