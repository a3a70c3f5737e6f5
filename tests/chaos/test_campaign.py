"""The matrix: which trials there are, what is kept of each, and what the tables say of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.chaos.campaign import TRIALS, chosen, failed_before, recorded
from tests.chaos.house import KINDS
from tests.chaos.nemesis import FREEZES, KILLS, RESTARTS, STOPS
from tests.chaos.points import write
from tests.chaos.proof import MARKS, tables
from tests.chaos.rows import ROWS, Size
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.stores import STORES
from tests.chaos.trials import Result, Trial, quantiles


def result(row: str = "K1", store: str = "redis", kind: str = "forked", **facts: object) -> Result:
    known = {"tasks": 10_000, "faults": {"kill child": 200}, "explained": {"its child was killed": 190, "raised": 400}}
    return Result(row, store, kind, 1, **(known | facts))  # type: ignore[arg-type]


def test_every_row_can_be_played() -> None:
    for row in ROWS.values():
        assert set(row.faults) <= {*KILLS, *STOPS, *FREEZES, *RESTARTS}
        assert set(row.scenarios) <= set(SCENARIOS)
        assert set(row.stores) <= set(STORES)
        assert set(row.kinds) <= set(KINDS)
        if not row.scenarios:
            for store in row.stores:
                row.plan(store, row.kinds[0], 1, Size())


def test_a_trial_is_called_by_its_name_which_makes_its_seed() -> None:
    (trial,) = chosen("K2 redis preforked", "", "")

    assert str(trial) == "K2 redis preforked"
    assert trial.seed == Trial("K2", "redis", "preforked").seed
    assert trial.seed != Trial("K2", "redis", "preforked", salt="again").seed
    assert len({each.seed for each in TRIALS}) == len(TRIALS)


def test_rows_are_tried_in_the_order_in_which_they_were_asked_for() -> None:
    trials = chosen("", "T19,K3", "preforked")

    assert list(dict.fromkeys(trial.row for trial in trials)) == ["T19", "K3"]
    assert {trial.kind for trial in trials} == {"preforked"}


def test_what_is_recorded_comes_back_and_the_last_counts(tmp_path: Path) -> None:
    record = tmp_path / "record"
    first, last = result(findings={"lost": 1}), result()
    record.write_text("".join(json.dumps(asdict(each)) + "\n" for each in (first, last)))

    assert recorded(record) == {"K1 redis forked": last}
    assert recorded(tmp_path / "none") == {}


def test_a_line_says_what_became_of_a_trial() -> None:
    assert "K1 redis forked seed=1 tasks=10000 faults=200 lost=0 reruns=190 (all explained)" in str(result())
    assert str(result()).endswith("PASS")
    assert str(result(findings={"lost": 2, "rerun": 1})).endswith("FAILED: lost, rerun")
    assert "reruns=191 (1 NOT explained)" in str(result(findings={"rerun": 1}))


def test_a_retry_that_its_task_asked_for_is_no_rerun() -> None:
    assert result(explained={"raised": 5}).reruns == 0


@pytest.mark.parametrize(
    ("times", "words"),
    [([], "-"), ([[0.5]], "0.50/0.50/0.50 s"), ([[0.01] * 150, [0.02] * 49, [3.0]], "0.01/0.02/3.00 s")],
)
def test_the_quantiles(times: list[list[float]], words: str) -> None:
    assert quantiles(times) == words


def test_what_failed_and_what_was_skipped_is_in_the_tables() -> None:
    bad = result(kind="preforked", findings={"lost": 1, "rerun": 0}, examples=["lost: intent 7"])
    report = tables([result(), bad, result(store="sqlite", skipped="no disk of its own")])

    assert "forked: ok, 200 in 10,000; **preforked: FAILED** (lost), 200 in 10,000" in report
    assert "forked: skipped, no disk of its own" in report
    assert "* K1 redis preforked (?): lost: intent 7" in report
    assert "| tasks lost | K1, K2, K3, K4, K5, K6, K7, K8, X, T19 | 0 | 1 | **no** |" in report
    assert "2 trials, 1 of them passed: 20,000 tasks, 400 faults." in report
    assert "None lost" not in report


def test_what_so_many_faults_show_is_said() -> None:
    scene = result(row="R1", faults={"flushes": 9000})
    report = tables([result(), result(kind="preforked"), scene])

    assert "fewer than 0.750% of the 400 faults of the kill rows do" in report


def test_what_is_aimed_at_is_told_where_it_is_not_reached() -> None:
    slow = result(recovery={"child": [0.05] * 100 + [1.5]})
    again = result("K4", explained={"its worker was killed": 100}, repeated=1, outlived=0.04)

    report = tables([slow, again])

    assert "| p50 0.1 s, max 1 s | 0.05/0.05/1.50 s of 101, of 190 reruns | **no** |" in report
    assert "of 100 kills of both guardians | K4 | 1 | forked 0.5 | yes |" in report
    assert "| a run outlives its guardians by | K4 | 0.1 s | 0.04 s | yes |" in report


def test_what_scenarios_measured_is_compared_with_its_aim() -> None:
    figures = [
        "hanging: ended later than it had to by: 0.05 (<= 0.2)",
        "hanging: stopped before its time by: -1 (<= 0)",
    ]
    hanging = [
        result("T2", figures=figures),
        result("T2", kind="threaded", figures=[figures[0].replace("0.05", "0.25")]),
    ]

    report = tables([*hanging, result("K9", figures=["a child outlived both guardians by: 0.007 (<= 0.1)"])])

    assert "| T2, T10 | 0.2 s | 0.25 s | **no** |" in report
    assert "| K9 | 0.1 s | 0.01 s | yes |" in report


def test_the_loss_of_a_host_has_one_aim_on_servers_and_another_on_sqlite() -> None:
    known = {"faults": {"host_is_lost": 5}, "explained": {"its worker was killed": 3}}
    times = {"redis": [11.0, 13.0, 17.0], "sqlite": [0.2, 1.0, 2.0]}
    lost = [result("K7", store, recovery={"worker": took}, **known) for store, took in times.items()]

    report = tables(lost)

    assert "| K7 | p50 14 s, max 18 s | 13.00/17.00/17.00 s of 3, of 3 reruns | yes |" in report
    assert "| K7, K8 | max 1.5 s | 1.00/2.00/2.00 s of 3, of 3 reruns | **no** |" in report


def test_what_failed_and_was_tried_again_stays_in_the_tables(tmp_path: Path) -> None:
    record = tmp_path / "record"
    first, last = result(findings={"lost": 1}, examples=["lost: intent 9"]), result()
    record.write_text("".join(json.dumps(asdict(each)) + "\n" for each in (first, last)))

    report = tables(list(recorded(record).values()), failed_before(record))

    assert "* K1 redis forked (?): lost: intent 9" in report
    assert "1 trials, 1 of them passed: 10,000 tasks, 200 faults. Of these 1 had failed before, 1 times." in report


def test_the_tables_are_put_between_their_marks(tmp_path: Path) -> None:
    document = tmp_path / "document"
    document.write_text(f"before\n{MARKS[0]}old\n{MARKS[1]}after\n")

    write("new", document, MARKS)

    assert document.read_text() == f"before\n{MARKS[0]}\nnew\n\n{MARKS[1]}after\n"
