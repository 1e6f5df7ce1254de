"""The systemd unit that is shipped: systemd takes it, it grants little, docs/daemon.md is true."""

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
from prometheus_client import generate_latest

from aerostat.cli import cli
from aerostat.metrics import MetricsExport
from tests.unit.test_metrics import BUSY

ROOT = Path(__file__).parents[2]
UNIT = (ROOT / "aerostat" / "systemd" / "aerostat.service").read_text()
DAEMON_MD = (ROOT / "docs" / "daemon.md").read_text()


def setting(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)
    return value


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is there, which is all that it needs of the machine."""
    program = tmp_path / "aerostat"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path = tmp_path / "aerostat.service"
    path.write_text(UNIT.replace("ExecStart=aerostat ", f"ExecStart={program} "))
    return path


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_systemd_takes_the_unit(unit: Path) -> None:
    done = analyze("verify", unit)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_systemd_sees_a_mistake_in_it(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("ProtectSystem=strict", "ProtectSystem=severe"))
    assert "Failed to parse protect system value" in analyze("verify", unit).stderr


def test_its_exposure_is_what_the_page_says(unit: Path) -> None:
    done = analyze("security", "--offline=yes", unit)
    match = re.search(r"exposure level for aerostat.service: ([\d.]+) (\w+)", done.stdout)
    assert match, done.stderr
    said = re.search(r"exposure at ([\d.]+) \((\w+)\)", DAEMON_MD)
    assert said
    assert match[2] == said[2] == "OK"
    # Versions of systemd weigh a few settings differently.
    assert abs(float(match[1]) - float(said[1])) <= 0.3


def test_its_command_line_is_one_of_ours() -> None:
    options = re.search(r'AEROSTAT_OPTIONS=(.*)"', setting("Environment"))
    assert options
    line = setting("ExecStart").replace("${STATE_DIRECTORY}", "/var/lib/aerostat")
    program, verb, *arguments = shlex.split(line.replace("$AEROSTAT_OPTIONS", options[1]))
    assert (program, verb) == ("aerostat", "record")
    context = click.Context(cli, info_name="aerostat")
    command = cli.get_command(context, verb)
    assert command is not None
    command.make_context(verb, arguments, parent=context)


def test_every_option_in_the_page_is_one_of_ours() -> None:
    command = cli.get_command(click.Context(cli), "record")
    assert command is not None
    known = {name for parameter in command.params for name in parameter.opts}
    text = re.sub(r"^ .*$", "", DAEMON_MD, flags=re.MULTILINE)  # other programs' lines
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert len(used) > 5
    assert used <= known


def test_the_page_lists_the_metrics() -> None:
    with MetricsExport() as export:
        export.update([BUSY])
        text = generate_latest(export._registry).decode()
    exposed = set(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    listed = set(re.findall(r"^\| `(aerostat_\w+)` \| (\w+) \|", DAEMON_MD, re.MULTILINE))
    assert listed == exposed


def test_it_grants_nothing_that_the_page_does_not_explain() -> None:
    granted = setting("CapabilityBoundingSet").split()
    assert granted == setting("AmbientCapabilities").split()
    for capability in granted:
        assert capability in DAEMON_MD
    assert len(granted) == 5
