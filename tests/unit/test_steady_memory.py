"""What a recorder frees goes back to the system, as glibc alone would not have it."""

import os
import subprocess
import sys

import pytest

MIB = 1 << 20
FREED_MIB = 80
PROGRAM = """
import sys
if sys.argv[1] == "steady":
    from aerostat.steady_memory import keep_memory_steady
    keep_memory_steady()
import numpy as np
np.ones(24 << 20, np.uint8)  # of which glibc learns that blocks of that size come and go
kept = []
for _ in range(int(sys.argv[2])):
    freed = np.ones(10 << 20, np.uint8)
    kept.append(np.ones(64 << 10, np.uint8))
    kept.append(freed)
kept = kept[::2]
del freed
for line in open("/proc/self/status"):
    if line.startswith("RssAnon:"):
        print(int(line.split()[1]) << 10)
"""


def resident_bytes(how: str) -> int:
    """What is left resident of a process that has freed 80 MiB between small blocks."""
    command = [sys.executable, "-c", PROGRAM, how, str(FREED_MIB // 10)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_large_blocks_between_small_ones_are_given_back() -> None:
    assert resident_bytes("as it comes") - resident_bytes("steady") > FREED_MIB * MIB * 3 // 4


@pytest.mark.parametrize("verb", ["record", "top"])
def test_numpy_is_not_there_yet_when_a_verb_asks_for_it(verb: str) -> None:
    """numpy reads NUMPY_MADVISE_HUGEPAGE when it is imported, and never again."""
    code = f"import sys, aerostat.verbs.{verb}; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


THREADS = """
import sys
if sys.argv[1] == "few":
    from aerostat.steady_memory import keep_threads_few
    keep_threads_few()
import os
import numpy as np
np.ones((300, 300)) @ np.ones((300, 300))
found = len(os.listdir("/proc/self/task"))
import pyarrow
print(found, pyarrow.cpu_count())
"""


def threads(how: str) -> tuple[int, int]:
    """Count those that numpy brings, this process's own included, and those Arrow's pool may."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", THREADS, how]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    numpys, arrows = done.stdout.split()
    return int(numpys), int(arrows)


def test_numpy_and_arrow_bring_no_thread_for_each_cpu() -> None:
    cpus = len(os.sched_getaffinity(0))
    numpys, arrows = threads("as it comes")
    assert cpus == 1 or (numpys > 1 and arrows > 1)
    assert threads("few") == (1, 1)
