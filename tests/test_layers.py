"""Who may import whom, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "delayed"

# Each layer may import those above it in this list, and itself. A module belongs to the longest name that fits.
LAYERS = [
    ["delayed.clock", "delayed.errors", "delayed.durations", "delayed.bar", "delayed.stopping", "delayed.version"],
    [
        "delayed.logger",
        "delayed.message",
        "delayed.patience",
        "delayed.retry",
        "delayed.functions",
        "delayed.fields",
        "delayed.limit",
        "delayed.plugs",
        "delayed.extended",
        "delayed.serializers",
        "delayed.compressors",
        "delayed.seals",
        "delayed.allow",
        "delayed.sizes",
        "delayed.tracing",
        "delayed.worker.verdict",
        "delayed.events",
    ],
    ["delayed.plain", "delayed.notes"],
    ["delayed.hidden"],
    ["delayed.shown"],
    ["delayed.build"],
    ["delayed.ticks"],
    [
        "delayed.answers",
        "delayed.attempts",
        "delayed.codec",
        "delayed.hints",
        "delayed.options",
        "delayed.signature",
        "delayed.typed",
        "delayed.unique",
    ],
    ["delayed.brokers"],
    ["delayed.task", "delayed.producer", "delayed.transactions"],
    ["delayed.batches", "delayed.form", "delayed.schedule", "delayed.waits"],
    [
        "delayed.after",
        "delayed.consumer",
        "delayed.context",
        "delayed.keys",
        "delayed.letters",
        "delayed.orders",
        "delayed.results",
    ],
    ["delayed.locks"],
    ["delayed.handle", "delayed.group", "delayed.queue", "delayed.schedules", "delayed.watching"],
    ["delayed.delay", "delayed.sweeper", "delayed.scheduler"],
    ["delayed.worker"],
    ["delayed.testing"],
    ["delayed.supervisor"],
    ["delayed.demo.evidence", "delayed.demo.tasks"],
    ["delayed.cli.common", "delayed.cli.discover"],
    ["delayed.demo"],
    ["delayed.cli"],
    ["delayed.__main__"],
]
DRIVERS: dict[str, str | tuple[str, ...]] = {
    "redis": "delayed.brokers",
    "psycopg": "delayed.brokers",
    "pymongo": "delayed.brokers",
    "bson": "delayed.brokers",
    "sqlite3": "delayed.brokers",
    "pytest": "delayed.testing.plugin",
    "click": "delayed.cli",
    "rich": ("delayed.cli", "delayed.bar"),
}


def level(module: str) -> int:
    fits = [
        (len(name), number)
        for number, names in enumerate(LAYERS)
        for name in names
        if module == name or module.startswith(name + ".")
    ]
    assert fits, f"{module} has no layer: put it into the list"
    return max(fits)[1]


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = ("delayed", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> list[str]:
    """What a module imports when it runs: not what stands under TYPE_CHECKING."""
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            assert node.module
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            known = modules()
            found.extend(name if name in known else str(node.module) for name in below)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


@pytest.mark.parametrize("module", sorted(set(modules()) - {"delayed"}))
def test_lower_layers_never_import_higher_ones(module: str) -> None:
    for name in imports(modules()[module]):
        if name.startswith("delayed.") or name == "delayed":
            if name == "delayed":
                assert module.startswith(("delayed.demo", "delayed.cli")), f"{module} imports the whole package"
                continue
            assert level(name) <= level(module), f"{module} imports {name}"
        driver = name.partition(".")[0]
        if driver in DRIVERS:
            assert module.startswith(DRIVERS[driver]) or module == "delayed.__main__", f"{module} imports {name}"


@pytest.mark.parametrize("module", sorted(name for name in modules() if name.startswith("delayed.brokers")))
def test_brokers_never_see_a_task(module: str) -> None:
    assert set(imports(modules()[module])).isdisjoint({"delayed.task", "delayed.codec", "delayed.functions"})


def test_tasks_never_see_a_broker() -> None:
    for module in ("delayed.task", "delayed.codec", "delayed.functions"):
        assert not [name for name in imports(modules()[module]) if name.startswith("delayed.brokers")]


def loaded_by(code: str) -> set[str]:
    code = f"import sys; before = set(sys.modules); {code}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    return set(done.stdout.split())


def test_the_package_loads_nothing_before_it_is_used() -> None:
    assert [name for name in loaded_by("import delayed") if name.startswith("delayed")] == ["delayed"]


def test_queues_and_decorators_load_no_driver() -> None:
    loaded = loaded_by("from delayed import Queue, delayed, Task, Retry")

    assert loaded.isdisjoint({"redis", "sqlite3", "asyncio", "click", "rich", "cloudpickle", "msgpack", "inspect"})


def test_the_fork_server_loads_nothing_that_slows_its_forks() -> None:
    loaded = loaded_by("import delayed.worker.forkserver")

    assert loaded.isdisjoint(
        {"threading", "logging", "random", "inspect", "dataclasses", "asyncio", "sqlite3", "redis", "delayed.typed"}
    )
    assert {name for name in loaded if name.startswith("delayed.brokers")} == set()
