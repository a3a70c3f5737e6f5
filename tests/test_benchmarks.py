"""The comparison with peers: what can be told without installing them."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import report
from benchmarks.peers.catalog import PEERS, WAYS, Peer
from benchmarks.peers.figures import MACHINE, Figures, Key
from benchmarks.peers.plot import bars
from benchmarks.peers.targets import targets

FOLDER = Path(report.__file__).parent


def names(tree: ast.Module) -> set[str]:
    """What a module binds at its top."""
    bound = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return bound | {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: peer.name)
def test_every_peer_has_a_file_of_the_same_shape(peer: Peer) -> None:
    tree = ast.parse((FOLDER / f"{peer.module}.py").read_text())

    assert names(tree) >= {"DOCS", "ACKNOWLEDGES", "WORKERS", "send"}
    assert set(peer.idle) <= set(WAYS)


def test_a_target_is_reached_missed_or_not_measured() -> None:
    figures = Figures()
    figures.add(Key(MACHINE, "PING"), 10_000)
    figures.add(Key("delayed", "drain", "one"), 79_000, 81_000, 90_000)
    figures.add(Key("delayed", "start", "one"), 0.4)

    found = {target.what: target for target in targets(figures, ["delayed", "rq"])}

    drain = found["drain, `PreforkedWorker`, one process / PING"]
    assert (drain.value, drain.reached) == (pytest.approx(8.1), True)
    assert found["start-up to the first task"].reached is False
    assert found["drain, two cores / PING"].reached is None


def test_only_peers_that_acknowledge_on_the_same_store_are_to_be_outrun() -> None:
    figures = Figures()
    for peer, rate in (("delayed", 30_000), ("rq", 1000), ("sergeant", 200_000), ("procrastinate", 5000)):
        figures.add(Key(peer, "drain", "one"), rate)

    found = list(targets(figures, ["delayed", "rq", "procrastinate"]))

    assert next(target.value for target in found if "acknowledges" in target.what) == pytest.approx(30)


def test_the_page_names_medians_spreads_failures_and_who_is_left_out() -> None:
    figures = Figures()
    figures.add(Key("rq", "drain", "one"), 200, 300, 250)
    figures.add(Key("rq", "latency", "one"), 0.001, 0.003)
    figures.add(Key(MACHINE, "PING"), 10_000)
    figures.failed[Key("rq", "drain", "two")] = "Failed: 100 tasks ran 101 times"
    told: dict[str, Any] = {"docs": "https://python-rq.org", "acknowledges": True, "versions": {"rq": "3.0"}}

    page = report.page(figures, {"rq": told}, {"Redis 6.2": "commands"}, {"arq": "it can't be installed"}, 3, 60)

    assert "| rq | yes | 250 (200 to 300) |" in page
    assert "rq drain two: Failed: 100 tasks ran 101 times" in page
    assert "arq is left out: it can't be installed" in page
    assert "| rq, one process | 2.00 | 2.98 | 2 |" in page
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_the_plot_is_a_picture_of_every_row() -> None:
    from xml.etree import ElementTree

    picture = ElementTree.fromstring(bars("<rates>", [("delayed", 900, 1000, 1100), ("rq & co", 50, 50, 50)]))

    words = [element.text for element in picture.iter() if element.tag.endswith("text")]
    assert {"<rates>", "delayed", "1,000", "rq & co", "50"} <= set(words)
