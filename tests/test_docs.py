"""The documentation's table of pipelines is the tests'."""

from pathlib import Path

from pipelines import CASES

PAGE = Path(__file__).parents[1] / "docs" / "pipelines.md"


def test_the_table_of_pipelines_has_every_case():
    rows = [line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    listed = rows[rows.index("case") + 1 :]
    assert listed == [case.name for case in CASES]
