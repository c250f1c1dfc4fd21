"""The README's tables are what its result files give, and a table that is not is found."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench import commands, kernels, memory, readme, readme_tables, recipe
from bench.__main__ import parser as bench_parser
from bench.cuda_proof import __main__ as cuda_proof
from tvmopt.options import run

ROOT = Path(__file__).resolve().parent.parent.parent
README = ROOT / "README.md"
TABLES = readme.tables(README.read_text(), "README.md")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The README with the files that its tables name, elsewhere."""
    for name in {name for table in TABLES for name in table.files}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return Path(shutil.copy(README, tmp_path / "README.md"))


def check(path: Path) -> int:
    return run(readme.main, ["--check", "--readme", str(path)])


def test_the_readme_agrees_with_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(README) == 0, capsys.readouterr().err
    assert {table.kind for table in TABLES} == set(readme_tables.KINDS)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_an_altered_number_is_found_and_mended(
    table: readme.Table, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = copy.read_text()
    lines = right.splitlines(keepends=True)
    # The last digit of the table, so that neither the layout nor a name gives it away.
    number = max(i for i in range(table.first, table.last - 1) if re.search(r"\d", lines[i]))
    at = max(found.start() for found in re.finditer(r"\d", lines[number]))
    lines[number] = f"{lines[number][:at]}{(int(lines[number][at]) + 1) % 10}{lines[number][at + 1 :]}"
    copy.write_text("".join(lines))
    assert check(copy) == 1
    said = capsys.readouterr().err
    assert f"line {table.first}: the table {table.kind}" in said and said.count("\n") == 1
    assert copy.read_text() == "".join(lines), "--check writes nothing"
    assert run(readme.main, ["--readme", str(copy)]) == 0
    assert copy.read_text() == right


def test_an_altered_result_is_found(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy.parent / TABLES[0].files[0]
    document = json.loads(path.read_text())
    document["results"][0]["latency_ms"]["median"] *= 1.01
    path.write_text(json.dumps(document))
    assert check(copy) == 1
    assert "the table models" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"<!-- table: models ", "<!-- table: modells ", "unknown kind of table 'modells': choose from models"),
        (r"<!-- table: models \S+", "<!-- table: models no.json", "cannot read .*no.json"),
        (r"<!-- table: models .*-->", "<!-- table: models -->", "at least one file"),
        (r"<!-- table: kernels \S+", f"<!-- table: kernels {TABLES[0].files[0]}", "no single kernel"),
        (r"<!-- table: recipe \S+", f"<!-- table: recipe {TABLES[0].files[0]}", "no result of the recipe"),
        (r"<!-- table: tuning \S+", f"<!-- table: tuning {TABLES[0].files[0]}", "no manifest"),
        (r"<!-- table: cuda-proof \S+", f"<!-- table: cuda-proof {TABLES[0].files[0]}", "no result of bench.cuda_"),
        (r"<!-- end table -->", "", "before the end of the one of line"),
        (r"<!-- table: models .*-->", "", "end of no table"),
    ],
)
def test_what_is_wrong_in_a_readme_is_said_with_its_line(
    old: str, new: str, message: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, count = re.subn(old, new, copy.read_text(), count=1)
    assert count == 1
    copy.write_text(text)
    assert check(copy) == 1
    said = capsys.readouterr().err
    assert re.search(rf"README.md, line \d+: .*{message}", said) and said.count("\n") == 1
    assert copy.read_text() == text


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "cannot read"), ("# No table\n", "has no table"), ("<!-- table: models a.json -->\n", "has no end")],
)
def test_no_table_to_check(text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if text is not None:
        (tmp_path / "R.md").write_text(text)
    assert check(tmp_path / "R.md") == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_every_command_of_a_table_can_be_given() -> None:
    parsers: dict[str, Any] = {
        "bench": bench_parser, "bench.kernels": kernels.parser, "bench.recipe": recipe.parser,
        "bench.memory": memory.parser, "bench.cuda_proof": cuda_proof.parser,
    }  # fmt: skip
    shown = set(re.findall(r"`python -m (bench[.\w]*)([^`]*)`", "\n".join(table.body for table in TABLES)))
    assert {module for module, _ in shown} == set(parsers)
    for module, arguments in shown:
        parsers[module]().parse_args(shlex.split(arguments))


def test_a_file_that_records_its_command_shows_it(copy: Path) -> None:
    path = copy.parent / TABLES[0].files[0]
    document = json.loads(path.read_text())
    assert "`python -m bench`" in readme_tables.models([path])
    document["environment"]["command"] = "python -m bench digits_cnn --samples 50"
    path.write_text(json.dumps(document))
    assert "`python -m bench digits_cnn --samples 50`" in readme_tables.models([path])


@pytest.mark.parametrize(
    ("arguments", "recorded"),
    [
        ([], ""),
        (["torchvision:resnet18", "--json", "out.json", "--peers", "none"], " torchvision:resnet18 --peers none"),
        (["--json=out.json", "--report", "r.html", "--quick"], " --quick"),
        (["/home/me/nets/mine.py:make", "--data-dir", "~/mnist", "--log-dir=/logs/a"],
         " mine.py:make --data-dir mnist --log-dir=a"),
        (["nets/my net.py:make"], " 'nets/my net.py:make'"),
    ],
)  # fmt: skip
def test_what_is_recorded_of_a_command_line(arguments: list[str], recorded: str) -> None:
    assert commands.recorded("bench", arguments) == f"python -m bench{recorded}"


def result(variant: str, model: str = "digits_cnn", **changed: Any) -> dict[str, Any]:
    return {"model": model, "variant": variant, "batch": 1, "dtype": "float32", "strategy": "default", **changed}


@pytest.mark.parametrize(
    ("rows", "environment", "wanted"),
    [
        ([result("manual", "torchvision:alexnet", batch=8)], {},
         " torchvision:alexnet --variants manual --peers none --batch 8"),
        ([result("peer:torch")], {}, " --variants none --peers torch"),
        # Asked for, and not installed.
        ([result(v) for v in ("original", "manual", "auto", "peer:torch")], {"skipped_peers": ["openvino"]}, ""),
    ],
)  # fmt: skip
def test_the_command_of_an_older_file(rows: list[dict[str, Any]], environment: dict[str, Any], wanted: str) -> None:
    assert commands.of_bench({"environment": environment, "results": rows}) == f"python -m bench{wanted}"


def test_kernels_in_words() -> None:
    words = {
        "1x64x56x56,64,3": "3x3 convolution, 64 to 64 channels, 56x56",
        "2x32x28x28,32,3,2,1,32": "3x3 convolution, 32 to 32 channels, 28x28, stride 2, 32 groups, batch 2",
    }
    assert {shape: readme_tables._kernel("conv2d", shape) for shape in words} == words
