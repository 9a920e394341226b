"""docs/security.md promises nothing that no test proves."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()


def test_every_test_that_the_page_names_exists():
    tests = {file.name: file.read_text() for file in (ROOT / "tests").rglob("test_*.py")}
    missing = []
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and ".py`: " in line]
    for row in rows:
        for file, names in re.findall(r"`(test_\w+\.py)`: ((?:`test_\w+`(?:, )?)+)", row):
            told = re.findall(r"`(test_\w+)`", names)
            missing += [f"{file}: {name}" for name in told if f"def {name}(" not in tests.get(file, "")]
    assert len(rows) > 20 and not missing, missing


def test_every_promise_names_its_proof():
    promises = [row for row in PAGE.splitlines() if row.startswith("| ") and not row.startswith(("| promise", "| ---"))]
    assert promises and all("`: `test_" in row for row in promises)
