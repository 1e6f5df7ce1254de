"""Runs all benches, or those named, each in a process of its own; then one table of them all.

python -m tests.bench
python -m tests.bench syscalls drain --pairs 15
"""

from __future__ import annotations

import json
import subprocess
import sys

from tests.bench.measure import draw, parser

BENCHES = ("hits", "syscalls", "drain", "recorder", "disk", "memory", "tool", "goals", "lab")
BENCHES += ("served", "prediction", "fidelity")


def main() -> int:
    """Run benches; the exit code is 1 where one failed to run, whatever the goals."""
    options = parser(__doc__.split("\n")[0])
    options.add_argument("bench", nargs="*", choices=[*BENCHES, []], metavar="BENCH")
    given = options.parse_args()
    names = ("pairs", "seed", "seconds", "events", "pages")
    passed = [f"--{name}={getattr(given, name)}" for name in names]
    passed.append(f"--output={given.output}")
    failed, documents = [], []
    for name in given.bench or BENCHES:
        print(f"bench {name}", file=sys.stderr)
        command = [sys.executable, "-m", f"tests.bench.bench_{name}", *passed]
        if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
            failed.append(name)
        else:
            documents.append(json.loads((given.output / f"{name}.json").read_text()))
    draw(documents)
    print(f"raw samples are in {given.output}/", file=sys.stderr)
    if failed:
        print(f"did not run to their end: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
