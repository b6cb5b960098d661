"""The README is true: its Python runs, its links lead somewhere, its commands exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_runs(capsys):
    scope: dict[str, object] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), scope)
    printed = capsys.readouterr().out
    assert "(8, 16, 16, 16)" in printed
    assert "(16, 3, 5, 5)" in printed
    assert "61,706" in printed
    assert "416,520" in printed
    assert float(printed.split()[-1]) < 2.0, "the loss after one epoch"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", text) if "://" not in t]
    assert targets or name != "README.md"
    for target in targets:
        assert (ROOT / target).exists(), f"{name} links to {target}"


def test_tables_are_what_their_result_files_say():
    """`convkern bench --show FILE --markdown` prints what stands between the marks."""
    from convkern.bench import markdown, report

    for name, block in markdown.embedded(README).items():
        assert block == markdown.render(report.load(ROOT / name)), f"the table of {name} is not that of the file"
    for path in (ROOT / "bench" / "results").glob("*.json"):
        if json.loads(path.read_text(encoding="utf-8")).get("kind") == report.KIND:
            name = path.relative_to(ROOT).as_posix()
            assert name in markdown.embedded(README), f"{name} is committed, and the README does not show it"


def test_the_commands_exist():
    from convkern.cli import app

    wanted = set(re.findall(r"convkern (\w+)", "\n".join(blocks("sh"))))
    assert {"train", "evaluate", "predict", "info", "bench"} <= wanted
    for command in wanted:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
    options = CliRunner().invoke(app, ["train", "--help"]).output
    for option in set(re.findall(r"convkern train.*?(--[\w-]+)", "\n".join(blocks("sh")))) - {"--help"}:
        assert option in options


def test_ci_runs_the_readmes_test_commands():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    for command in ("pytest -n 2 --dist worksteal", "pytest -n 2 --dist worksteal -m full"):
        assert any(line.split("#")[0].strip() == command for block in blocks("sh") for line in block.splitlines())
        assert command in script
