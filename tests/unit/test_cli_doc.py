"""docs/cli.md, the help texts and the command agree."""

import re
import shlex
from pathlib import Path

import click
import pytest

from aerostat.cli import VERBS, cli

ROOT = Path(__file__).parents[2]
CLI_MD = (ROOT / "docs" / "cli.md").read_text()
CONTEXT = click.Context(cli, info_name="aerostat", **cli.context_settings)


def command(verb: str) -> click.Command:
    found = cli.get_command(CONTEXT, verb)
    assert found is not None
    return found


def section(verb: str) -> str:
    """The part of docs/cli.md below `## VERB`."""
    match = re.search(rf"^## {verb}$(.*?)(?=^## |\Z)", CLI_MD, re.MULTILINE | re.DOTALL)
    assert match, f"docs/cli.md has no section `## {verb}`"
    return match[1]


def help_text(verb: str) -> str:
    with click.Context(command(verb), info_name=verb, parent=CONTEXT) as context:
        return context.get_help()


def examples(text: str) -> list[list[str]]:
    """Every line of a text that calls aerostat, as argument lists without the program's name."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    calls = [re.match(r" {2,}(?:sudo )?(aerostat .*)", line) for line in lines]
    # A line with brackets is a synopsis.
    found = [call[1] for call in calls if call and "[" not in call[1]]
    return [shlex.split(call, comments=True)[1:] for call in found]


def parse(arguments: list[str]) -> None:
    """Have click read a command line as it would, and stop short of running it."""
    verb, *rest = arguments
    if verb in VERBS and not {"-h", "--help"} & set(rest):
        command(verb).make_context(verb, rest, parent=CONTEXT)
    else:
        assert verb in {*VERBS, "-h", "--help", "--version"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_documented(verb: str) -> None:
    text = section(verb)
    for parameter in command(verb).params:
        assert isinstance(parameter, click.Option | click.Argument)
        name = (
            max(parameter.opts, key=len)
            if isinstance(parameter, click.Option)
            else parameter.make_metavar(CONTEXT).strip("[].")
        )
        assert name in text, f"docs/cli.md, {verb}: {name} is missing"


def options_told(verb: str, text: str) -> set[tuple[str, str]]:
    """Verb and option of each option in a verb's section: `record --delta` in code is record's."""
    told = set()

    def owned(by: str, words: str) -> None:
        told.update((by, option) for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", words))

    for other, words in re.findall(r"`(?:aerostat )?(\w+) ([^`]*)`", text):
        if other in VERBS:
            owned(other, words)
            text = text.replace(f"{other} {words}`", "`")
    owned(verb, text)
    return told


@pytest.mark.parametrize("verb", VERBS)
def test_every_documented_option_is_one_of_its_verb(verb: str) -> None:
    for owner, option in options_told(verb, section(verb)):
        known = [{*each.opts, *each.secondary_opts} for each in command(owner).params]
        assert option in set().union(*known), f"docs/cli.md, {verb}: {owner} has no {option}"


def test_options_are_told_of_the_verb_that_they_stand_behind() -> None:
    text = "`--runs` and `aerostat replay --seed 1`, or `lab --pair x`; `a --json`"
    assert options_told("compare", text) == {
        ("compare", "--runs"),
        ("compare", "--json"),
        ("replay", "--seed"),
        ("lab", "--pair"),
    }


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_help(verb: str) -> None:
    for parameter in command(verb).params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_examples_that_parse(verb: str) -> None:
    text = help_text(verb)
    assert "Examples:" in text
    found = examples(text.split("Examples:")[1])
    assert found
    for arguments in found:
        assert arguments[0] == verb
        parse(arguments)


@pytest.mark.parametrize("name", ["README.md", "docs/cli.md", "docs/guide.md", "CONTRIBUTING.md"])
def test_documented_command_lines_parse(name: str) -> None:
    for arguments in examples((ROOT / name).read_text()):
        parse(arguments)


def test_the_reader_of_examples_refuses_an_unknown_option() -> None:
    (arguments,) = examples("    aerostat show --no-such-option x.balloon")
    with pytest.raises(click.NoSuchOption):
        parse(arguments)


def test_sections_are_the_verbs() -> None:
    assert re.findall(r"^## (\S+)$", CLI_MD, re.MULTILINE) == list(VERBS)


def test_how_many_runs_are_made_when_nothing_is_said() -> None:
    """Told in words, since the three kinds of replay differ in it."""
    from aerostat.verbs.replay import command
    from replay.schedule import DEFAULT_RUNS

    (option,) = [each for each in command.params if each.name == "runs"]
    assert f"left out: {DEFAULT_RUNS}," in option.help
    assert f"measured runs of each strategy, {DEFAULT_RUNS} when left out" in CLI_MD
