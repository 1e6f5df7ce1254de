"""What the documents claim about the tree is true, and nothing names the machine it was made on."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# Spelled in pieces, so that this file does not hold what it looks for.
MACHINE = re.compile(r"(?<![\w.])/(?:work|farm|root(?=/\.))" + r"/[\w.]|/home/" + r"\w+/")
REGISTRY = re.compile(r"(?:pypi\." + r"org|pythonhosted\." + r"org|--(?:extra-)?index-" + r"url)")


def project_files() -> list[Path]:
    """Files under version control, and files new to it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def offending(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    found = []
    for path in paths:
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # Arrow segments; their manifests are text and are read
        found += [f"{path.name}: {match[0]}" for match in pattern.finditer(text)]
    return found


@pytest.mark.parametrize("pattern", [MACHINE, REGISTRY], ids=["machine path", "registry"])
def test_no_file_names_this_machine(pattern: re.Pattern[str]) -> None:
    paths = project_files()
    assert len(paths) > 20
    assert offending(pattern, paths) == []


@pytest.mark.parametrize("place", ["work", "root/.cache"])
def test_the_search_finds_a_machine_path(place: str, tmp_path: Path) -> None:
    path = tmp_path / "note.md"
    path.write_text(f"see /{place}/x and https://example.net/{place}/x")
    assert len(offending(MACHINE, [path])) == 1


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/guide.md"])
def test_make_targets_named_in_documents_exist(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)\s*make ([a-z]+)", (ROOT / name).read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"


def test_readme_leads_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.index("make demo") < text.index("make test")


def test_the_guide_lists_every_exit_code() -> None:
    from tracer.trace.errors import ExitCode

    text = (ROOT / "docs" / "guide.md").read_text()
    for code in ExitCode:
        assert re.search(rf"^\| {int(code)} \|", text, re.MULTILINE), code
