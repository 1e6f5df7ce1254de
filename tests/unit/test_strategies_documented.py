"""docs/strategies.md draws and says of each strategy what the code does."""

import re
from pathlib import Path

import pytest

from replay.backings import BACKINGS, Advice, Backing
from replay.native.types import Effect
from replay.plan import Plan
from replay.planning import Refused, make_plan
from replay.strategies import STRATEGIES, load_strategy
from replay.strategies.qemu import DISCARD_CALLS
from tests.unit.planned import EXAMPLE, context, listed, where_it_works

DOCUMENT = Path(__file__).parents[2] / "docs" / "strategies.md"

DRAWN = {
    "huge": "huge:unit_bytes=8192",
    "parallel": "parallel:border_bytes=4096",
}
"""Parameters with which the example is drawn, because its memory is smaller than a huge page."""


def drawn(plan: Plan) -> str:
    """A plan on 16 pages as docs/strategies.md draws it."""
    lines = ["request  advice          0123456789abcdef"]
    for index, (advice, page, pages, request) in enumerate(listed(plan)):
        row = "".join("#" if page <= i < page + pages else "." for i in range(16))
        note = "  same call" if plan.joined is not None and plan.joined[index] else ""
        if plan.thread is not None and plan.thread[index]:
            note = f"  thread {plan.thread[index]}"
        lines.append(f"{request:<7}  {advice:<14}  {row}{note}")
    return "\n".join([*lines, f"sent: {plan.wire_requests} requests, {plan.wire_bytes} bytes"])


def section(name: str) -> str:
    found = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(), re.M | re.S)
    assert found, f"docs/strategies.md has no section {name}"
    return found[1]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_a_section_with_its_source_and_its_plan(name):
    text, case, where = section(name), DRAWN.get(name, name), where_it_works(name)
    assert f"| [{name}](#{name}) |" in DOCUMENT.read_text()
    assert "Source: " in text
    assert f"```text\n{drawn(load_strategy(case).plan(EXAMPLE, where))}\n```" in text
    assert (f"`{case}`" in text) == (case != name)
    assert ("On memfd memory:" in text) == (where.backing == "memfd")


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_parameter_is_documented_with_its_default(name):
    fields = vars(STRATEGIES[name])
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", section(name), re.M)
    assert rows == [(key, str(value).lower()) for key, value in fields.items()]
    assert ("Parameters: none" in section(name)) == (not fields)


def test_the_table_of_backings_says_what_the_code_does():
    text = section("What works on which backing")
    for name, memory in BACKINGS.items():
        cells = [_effect(memory, advice) for advice in ADVICE_COLUMNS]
        assert f"| {name} | {memory.discard.name} | {' | '.join(cells)} |" in text
        assert f"| {name} | {', '.join(a.name for a in DISCARD_CALLS[name])} |" in text


ADVICE_COLUMNS = (Advice.DONTNEED, Advice.FREE, Advice.REMOVE, Advice.PUNCH_HOLE, Advice.REMAP)


def _effect(memory: Backing, advice: Advice) -> str:
    words = {Effect.FREES: "frees", Effect.FREES_LATER: "frees later", Effect.KEEPS: "keeps"}
    return words[memory.effects[advice]] if advice in memory.effects else "-"


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("backing", BACKINGS)
def test_a_strategy_works_on_a_backing_or_says_why_not(name, backing):
    """The document lists the refusals; the sentence is the one that the user reads."""
    where = context(host_page_bytes=BACKINGS[backing].host_page_bytes, backing=backing)
    reason = STRATEGIES[name].refusal(where)
    refused = set(re.findall(r"Refused on: (.+)\.", section(name))[:1] or [""])
    assert (reason is not None) == (backing in ", ".join(refused).split(", "))
    if reason is not None:
        assert isinstance(make_plan(STRATEGIES[name], EXAMPLE, where), Refused)
        assert len(reason) > 30
