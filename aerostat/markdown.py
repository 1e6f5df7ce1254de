"""A comparison as GitHub-flavoured Markdown, for a pull request: the verdict first, then why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aerostat import render
from aerostat.output import printable
from replay.stats import Verdict

if TYPE_CHECKING:
    from replay.compare import Comparison, Line

LONG = 12
"""A table of more rows is folded."""
MARKS = {
    Verdict.WORSE: "\N{LARGE RED CIRCLE}",
    Verdict.BETTER: "\N{LARGE GREEN CIRCLE}",
    Verdict.SAME: "\N{MEDIUM WHITE CIRCLE}",
    Verdict.INCONCLUSIVE: "\N{LARGE YELLOW CIRCLE}",
}
COLUMNS = ("subject", "metric", "verdict", "baseline", "candidate", "ratio", "95 % interval", "p")
_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>!|~&]|:(?=//)|(?<=www)\.)")
"""What could begin or end something else than text within a line: markup, HTML, links."""
_CALLS = re.compile(r"([@#])(?=\w)")
"""GitHub turns these into mentions and references even where Markdown says that they are text."""
_BREAK = "\N{ZERO WIDTH SPACE}"


def of_comparison(comparison: Comparison, baseline: str, candidate: str) -> str:
    """Write a comparison down.

    Args:
        comparison: What was found.
        baseline: Name of the baseline, as its user knows it.
        candidate: The same of the candidate.

    Returns:
        Lines of Markdown, with a line end after the last. Names in them may come from a trace, so
        none of them can make a table, a link or a mention.
    """
    deciding = [line for line in comparison.lines if line.decisive]
    told = [line for line in deciding if line.difference.verdict is comparison.verdict]
    parts = [
        f"### {MARKS[comparison.verdict]} {comparison.verdict}: {name(candidate)} against "
        f"{name(baseline)}",
        _sum_up(comparison, deciding),
    ]
    parts += [_reasons(told)] if comparison.verdict is not Verdict.SAME else []
    if comparison.warnings:
        parts.append("\n".join(f"- **Warning:** {plain(text)}" for text in comparison.warnings))
    if deciding:
        parts.append(folded("What decides", deciding))
    rest = [line for line in comparison.lines if not line.decisive]
    if rest:
        parts.append(folded("Told beside it, decides nothing", rest, always=True))
    return "\n\n".join(part for part in parts if part) + "\n"


def _sum_up(comparison: Comparison, deciding: Sequence[Line]) -> str:
    verdicts = [line.difference.verdict for line in deciding]
    counts = ", ".join(f"{verdicts.count(each)} {each}" for each in Verdict if each in verdicts)
    code = int(comparison.exit_code)
    return f"{counts or 'nothing'} of {len(deciding)} metrics that decide; exit code {code}."


def _reasons(lines: Sequence[Line]) -> str:
    """The first of the lines that made the verdict, each with its reason."""
    found = [
        f"- {name(line.subject)}, {name(line.metric)}: {plain(line.difference.reason)}"
        for line in lines[:LONG]
    ]
    if len(lines) > LONG:
        found.append(f"- and {len(lines) - LONG} more, see below")
    return "\n".join(found)


def folded(title: str, lines: Sequence[Line], *, always: bool = False) -> str:
    """A table, folded under its title where it is long.

    Args:
        title: What it is of.
        lines: Its rows.
        always: Fold a short one too.
    """
    made = table(lines)
    if len(lines) <= LONG and not always:
        return made
    return f"<details>\n<summary>{title} ({len(lines)} metrics)</summary>\n\n{made}\n\n</details>"


def table(lines: Sequence[Line]) -> str:
    """One row a line; figures to the right."""
    head = f"| {' | '.join(COLUMNS)} |"
    rule = "|---|---|---|" + "---:|" * (len(COLUMNS) - 3)
    return "\n".join([head, rule, *(f"| {' | '.join(_row(line))} |" for line in lines)])


def _row(line: Line) -> list[str]:
    found = line.difference
    return [
        name(line.subject),
        name(line.metric),
        f"{MARKS[found.verdict]} {found.verdict}",
        render.figure(line.metric, found.base),
        render.figure(line.metric, found.candidate),
        render.cell(found.ratio, "{:.3f}".format),
        render.ratio_interval(found.low, found.high),
        render.cell(found.p_value, "{:.3g}".format),
    ]


def plain(text: str) -> str:
    """Text that means nothing but itself, to stand behind other text on its line."""
    return _CALLS.sub(rf"\1{_BREAK}", _SPECIAL.sub(r"\\\1", _one_line(text)))


def name(text: str) -> str:
    """A name as code, which mentions and links do not reach into."""
    inner = _one_line(text).replace("|", r"\|")
    fence = "`" * (max(map(len, re.findall("`+", inner)), default=0) + 1)
    space = " " if inner.startswith("`") or inner.endswith("`") or not inner else ""
    return f"{fence}{space}{inner or ' '}{space}{fence}"


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())
