"""The benchmarks: what can be told without installing peers, and without measuring."""

from __future__ import annotations

import ast
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import page as pages
from benchmarks.growth import network, sleepers, stuck
from benchmarks.growth import report as growth
from benchmarks.growth.curves import CURVES, STORES, points
from benchmarks.peers import report
from benchmarks.peers.catalog import PEERS, WAYS, Peer
from benchmarks.peers.figures import MACHINE, Figures, Key
from benchmarks.peers.plot import bars, panels
from benchmarks.peers.targets import targets
from benchmarks.proxy import delaying

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


@pytest.fixture
def grown() -> Figures:
    """Of everything that is measured of growth: it halves with ten times as many that wait."""
    figures = Figures()
    for name in CURVES:
        for store in STORES:
            for number, point in enumerate(points(name, store)):
                figures.add(Key(store, name, str(point)), 10_000 / 2**number if name == "waiting" else 5000)
    for number, way in enumerate(network.WAYS):
        figures.add(Key("redis", "trip", way), 0.001 + number / 500)
        figures.add(Key("delayed", "network", way), 10_000 - number * 2000)
    for mode in stuck.MODES:
        for kind in stuck.KINDS:
            for what, value in {"after": 1.6, "late": 0.1, "killed": 1.0, "next": 0.04}.items():
                figures.add(Key(mode, what, kind), value, value)
    for mode in sleepers.MODES:
        for way in sleepers.WAYS:
            figures.add(Key(mode, "sleepers", way), 0.12, 0.16, 0.14)
    return figures


def test_growth_is_judged_by_the_worst_point_and_the_worst_stop(grown: Figures) -> None:
    grown.add(Key("forked", "late", "spin"), -0.3)
    grown.add(Key("forked", "next", "spin"), 0.06)

    found = {target.what: target for target in growth.targets(grown)}

    slowest = next(target for what, target in found.items() if what.startswith("PostgreSQL"))
    assert (slowest.value, slowest.reached) == (pytest.approx(1 / 8), False)
    assert found["drain, 2 ms further away / near"].value == pytest.approx(0.8)
    assert found["stuck tasks: the worst distance from when to be stopped"].value == pytest.approx(0.3)
    assert found["the next task after one that was stuck, at worst"].value == pytest.approx(60)
    assert found["1,000 sleepers, `AsyncWorker`, one that waits for them / the ideal time"].value == pytest.approx(1.4)


def test_a_curve_of_which_a_point_is_missing_is_not_judged(grown: Figures) -> None:
    figures = Figures()
    figures.add(Key("redis", "waiting", "1000"), 10_000)

    assert [target.reached for target in growth.targets(figures)] == [None] * 11


def test_the_page_of_growth_has_a_table_for_everything(grown: Figures) -> None:
    grown.failed[Key("redis", "bytes")] = "Failed: so"

    page = growth.page(grown, ["Redis 6.2"], 3, 60)

    assert "| PostgreSQL | 10,000 | 5,000 | 2,500 | 1,250 |" in page
    assert "| delayed | 10,000 | 8,000 | 80 % |" in page
    assert "its kill | 1.600 | 40.0 | 40.0 |" in page
    assert "* Failed in a round: redis bytes: Failed: so" in page
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert len(tables) == 9
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_the_picture_of_growth_has_every_point_inside(grown: Figures) -> None:
    from xml.etree import ElementTree

    picture = ElementTree.fromstring(growth.plot(grown))

    groups = [element for element in picture if element.tag.endswith("}g")]
    assert len(groups) == len(CURVES)
    for group in groups:
        x, y = map(float, re.findall(r"[\d.]+", group.attrib["transform"]))
        circles = [element.attrib for element in group if element.tag.endswith("circle")]
        assert circles
        assert all(x + float(circle["cx"]) < float(picture.attrib["width"]) for circle in circles)
        assert all(0 < y + float(circle["cy"]) < float(picture.attrib["height"]) for circle in circles)


def test_a_picture_with_one_value_can_be_drawn() -> None:
    assert "only" in panels([("<one>", "x", {"only": [(1.0, 100.0)]}), ("none", "x", {})])


def test_each_command_writes_its_own_part_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"

    for command, text in (("peers", "first"), ("growth", "grown"), ("peers", "second\n")):
        pages.put(command, text, page)

    assert page.read_text() == f"{pages.PARTS['peers']}\n\nsecond\n\n{pages.PARTS['growth']}\n\ngrown\n"


def test_the_page_in_the_documentation_is_one_that_can_be_written_again() -> None:
    assert pages.PAGE.read_text().startswith(pages.PARTS["peers"])


def test_a_proxy_delays_both_ways_and_changes_nothing() -> None:
    sent = bytes(range(256)) * 8000
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"tcp://127.0.0.1:{listener.getsockname()[1]}/0"
        with delaying(url, 0.05) as near:
            assert near.endswith("/0")
            client = socket.create_connection(("127.0.0.1", int(near.rsplit(":", 1)[1].split("/")[0])), 10)
            server, _ = listener.accept()
            with client, server:
                server.settimeout(10)
                begun = time.monotonic()
                client.sendall(b"?")
                assert server.recv(1) == b"?"
                server.sendall(b"!")
                assert client.recv(1) == b"!"
                assert time.monotonic() - begun >= 0.1

                client.sendall(sent)
                client.shutdown(socket.SHUT_WR)
                with server.makefile("rb") as file:
                    assert file.read() == sent
