"""The rules of docs/map.md and docs/adr, read off the source: a convention that no test enforces is an opinion."""

import ast
import importlib.util
import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("cluster", "rag", "train", "agents", "serve_apps")
FILES = sorted(p.relative_to(ROOT) for layer in LAYERS for p in (ROOT / layer).rglob("*.py"))

ALLOWED = {
    "ray": (
        "cluster/actors.py", "cluster/runtime.py", "cluster/launcher.py", "cluster/fog/jobs.py", "train/run.py",
        "train/tune.py", "train/trainer.py", "train/datasets.py", "rag/ingest.py", "serve_apps/app.py",
        "serve_apps/*/app.py",
    ),
    "redis": ("cluster/store/*.py",),
    "fastapi": ("serve_apps/*.py",),
}  # fmt: skip

# Rules, records and arithmetic: what they need of the world arrives as an argument.
PURE = frozenset(
    {
        "model.py", "machine.py", "score.py", "ledger.py", "strategies.py", "table.py", "signature.py", "policy.py",
        "protocol.py", "matching.py", "placement.py", "pricing.py", "averaging.py", "dependencies.py", "calibration.py",
        "chunking.py", "words.py", "pipeline.py",
    }
)  # fmt: skip
EFFECTS = frozenset(
    {
        "asyncio", "time", "random", "secrets", "uuid", "socket", "subprocess", "threading", "ray", "redis", "aiohttp",
        "httpx", "fastapi",
    }
)  # fmt: skip
EFFECTFUL_NAMES = frozenset({("cluster.store", "Store"), ("cluster.clock", "utc_now"), ("cluster.ids", "new_id")})

WANTED_LINES, MOST_LINES = 300, 400
# Files that may be longer than is wanted, each with its reason; never longer than MOST_LINES.
LONG = {}


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text(), str(file))


def imports(file: Path) -> Iterator[tuple[str, str, int]]:
    """(module, name or '', line) of every import in the file, those inside functions too."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(file.with_suffix("").parts[: -node.level]) if node.level else ""
            module = ".".join(part for part in (package, node.module or "") if part)
            yield from ((module, alias.name, node.lineno) for alias in node.names)


def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if not listed.stdout:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_package_imports_itself_and_those_to_its_left(layer):
    forbidden = LAYERS[LAYERS.index(layer) + 1 :]
    wrong = [
        f"{file}:{line} imports {module}"
        for file in FILES
        if file.parts[0] == layer
        for module, _, line in imports(file)
        if module.split(".")[0] in forbidden
    ]
    assert not wrong, f"import line {' < '.join(LAYERS)} (docs/adr/0005-import-line.md): {wrong}"


@pytest.mark.parametrize("package", ALLOWED)
def test_a_framework_is_imported_in_its_shells_only(package):
    wrong = [
        f"{file}:{line}"
        for file in FILES
        for module, _, line in imports(file)
        if module.split(".")[0] == package and not any(fnmatch(str(file), allowed) for allowed in ALLOWED[package])
    ]
    assert not wrong, f"{package} belongs in {ALLOWED[package]} (docs/adr/0005-import-line.md), not in {wrong}"


def test_rules_have_no_effects():
    wrong = [
        f"{file}:{line} imports {module}{'.' + name if name else ''}"
        for file in FILES
        if file.name in PURE and file.parts[0] != "serve_apps" and file.parts[:2] != ("train", "model")
        for module, name, line in imports(file)
        if module.split(".")[0] in EFFECTS or (module, name) in EFFECTFUL_NAMES
    ]
    assert not wrong, f"clock, chance and input or output arrive as arguments (docs/adr/0005-import-line.md): {wrong}"


def test_every_file_is_one_idea():
    lengths = {str(file): len((ROOT / file).read_text().splitlines()) for file in FILES}
    too_long = {file: n for file, n in lengths.items() if n > MOST_LINES}
    unexplained = {file: n for file, n in lengths.items() if n > WANTED_LINES and file not in LONG}
    assert not too_long, f"at most {MOST_LINES} lines a file (CONTRIBUTING.md): {too_long}"
    assert not unexplained, f"above {WANTED_LINES} lines with a reason in LONG only (CONTRIBUTING.md): {unexplained}"
    stale = [file for file in LONG if lengths.get(file, 0) <= WANTED_LINES]
    assert not stale, f"no longer long, so no longer an exception: {stale}"


@pytest.mark.parametrize("layer", LAYERS)
def test_no_installed_package_shadows_ours(layer):
    spec = importlib.util.find_spec(layer)
    assert spec is not None and spec.submodule_search_locations, f"{layer} cannot be imported from {ROOT}"
    where = Path(next(iter(spec.submodule_search_locations))).resolve()
    assert where == ROOT / layer, f"`import {layer}` finds {where} (docs/adr/0005-import-line.md)"


def test_no_key_of_the_store_is_built_outside_it():
    wrong = [
        f"{file}:{node.lineno}"
        for file in FILES
        if file.parts[:2] != ("cluster", "store")
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "{village}:" in node.value
    ]
    assert not wrong, f"keys come from cluster/store/indexes.py (docs/adr/0001-one-commit-script.md): {wrong}"


def test_nothing_names_the_machine_that_it_was_written_on():
    # Built from pieces, or this file would name them itself.
    machine = re.compile("|".join(rf"(?<![\w.]){folder}/\w" for folder in ("/work", "/opt", "/home", "/root")))
    wrong = [
        f"{name}:{number}"
        for name in tracked()
        if not name.startswith("train/data/corpus/")
        for number, line in enumerate((ROOT / name).read_text(errors="ignore").splitlines(), 1)
        if machine.search(line)
    ]
    assert not wrong, f"no path of one machine (CONTRIBUTING.md): {wrong}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/map.md"])
def test_a_page_names_files_that_exist(page):
    named = re.findall(r"`((?:[a-z_.]+/)+[a-z_.]*)`|\]\(([\w./-]+)\)", (ROOT / page).read_text())
    bases = (ROOT, (ROOT / page).parent)
    missing = [name for pair in named for name in pair if name and not any((base / name).exists() for base in bases)]
    assert not missing, f"{page} is not true: {missing}"
