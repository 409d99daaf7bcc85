"""What only a database server does: it is chosen by a URL with a password, and goes away and comes back."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from study import database
from study.ledger import Ledger, LedgerError
from study.provenance import environment
from study.spec import StudySpec, without_passwords
from tests.processes import forked, forkserver
from tests.study.builders import add_trial, report, run_trial, spec_of, write_sweep
from tests.study.conftest import Call
from tests.study.postgresql import PASSWORD, PostgreSQL, binaries

pytestmark = pytest.mark.skipif(binaries() is None, reason="there is no PostgreSQL here")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    server = PostgreSQL()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def url(server: PostgreSQL) -> str:
    return server.new_database()


def study_of(url: str, folder: Path) -> tuple[StudySpec, Ledger]:
    spec = spec_of(folder)
    ledger = Ledger(url)
    ledger.open_study(spec.study, spec.model_dump(mode="json"), environment(spec))
    return spec, ledger


def points(url: str) -> list[tuple[int, str, float]]:
    engine = sa.create_engine(url)
    with engine.connect() as db:
        found = db.execute(sa.text("select step, metric, value from points order by step, metric")).all()
    engine.dispose()
    return [tuple(row) for row in found]


# ---- which ledger ----------------------------------------------------------------------------------------------------


def test_the_sweep_comes_before_the_environment_before_the_storage_folder(
    server: PostgreSQL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = server.new_database(), server.new_database()
    monkeypatch.delenv("STUDY_LEDGER", raising=False)
    assert Ledger.of(tmp_path).name == str(tmp_path / "ledger.db")
    monkeypatch.setenv("STUDY_LEDGER", one)
    assert Ledger.of(tmp_path).url == one
    assert Ledger.of(tmp_path, other).url == other


def test_commands_find_the_studies_of_the_environments_ledger(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    spec, ledger = study_of(url, tmp_path)
    run_trial(ledger, spec, "slow", curve={10: 0.9, 20: 0.25})
    ledger.close()
    code, _, error = call("status", "--storage", tmp_path)
    assert code == 2
    assert "$STUDY_LEDGER" in error
    monkeypatch.setenv("STUDY_LEDGER", url)
    code, out, _ = call("status", "--json", "--storage", tmp_path)
    assert code == 0
    assert '"slow-000"' in out
    code, out, _ = call("report", "race", "--storage", tmp_path)
    assert code == 0
    assert PASSWORD not in "".join(path.read_text() for path in tmp_path.rglob("*.html"))
    assert not (tmp_path / "ledger.db").exists()


def test_a_password_is_in_no_message(url: str, tmp_path: Path, call: Call) -> None:
    wrong = url.replace("/t", "/absent")
    with pytest.raises(LedgerError, match=r"^postgresql\+psycopg://me:\*\*\*@127.0.0.1:\d+/absent") as caught:
        Ledger(wrong)
    assert PASSWORD not in str(caught.value)
    with closing(Ledger(url)) as ledger, pytest.raises(LedgerError, match=r"no study 'rice' in") as caught:
        ledger.study("rice")
    assert PASSWORD not in str(caught.value)
    code, out, error = call("run", write_sweep(tmp_path / "sweep.yaml", ledger=wrong))
    assert code == 2
    assert "absent" in error
    assert PASSWORD not in out + error


def test_a_password_among_the_parameters_is_hidden_too() -> None:
    assert (
        without_passwords("postgresql://h/d?user=me&password=s3cret&x=1") == "postgresql://h/d?user=me&password=***&x=1"
    )


def test_a_wrong_password_is_said_at_once_and_not_tried_again(url: str) -> None:
    with pytest.raises(LedgerError, match="password authentication failed for user"):
        Ledger(url.replace(PASSWORD, "guess"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("mysql://me:s3cret@host/name", r"^mysql://me:\*\*\*@host/name: a ledger is kept in sqlite or postgresql"),
        ("ledger.db", "^ledger.db: not the URL of a ledger, such as"),
        ("postgresql+asyncpg://me:s3cret@host/name", r"^postgresql\+asyncpg://me:\*\*\*@host/name: .*pip install"),
    ],
)
def test_what_is_no_url_of_a_ledger_is_said(wrong: str, message: str) -> None:
    with pytest.raises(LedgerError, match=message):
        Ledger(wrong)


# ---- a server that goes away -----------------------------------------------------------------------------------------


def test_a_server_that_starts_again_under_writers_loses_nothing_and_doubles_nothing(
    server: PostgreSQL, url: str, tmp_path: Path
) -> None:
    """Two writers of the same steps; every connection ends three times in the middle of what it does."""
    spec, ledger = study_of(url, tmp_path)
    _, (stage,) = add_trial(ledger, spec, "slow")
    context = forkserver(__name__)
    opened, count, stop = context.Barrier(3), context.Value("i", 0), context.Event()
    shared = (url, stage.fingerprint(), opened, count, stop)
    writers = [forked(context, _write, *shared) for _ in range(2)]
    for writer in writers:
        writer.start()
    opened.wait(300)
    for _ in range(3):
        before = count.value
        while count.value < before + 50:
            assert all(writer.is_alive() for writer in writers)
            time.sleep(0.01)
        server.restart()
    stop.set()
    for writer in writers:
        writer.join(300)
        assert writer.exitcode == 0
    last = count.value
    assert points(url)[: 2 * last] == [
        row for step in range(1, last + 1) for row in ((step, "dev_cer", 0.5), (step, "loss", 1 / step))
    ]
    assert ledger.count(spec.study)["unfinished"] == 1


def _write(url: str, stage: str, opened: Any, count: Any, stop: Any) -> None:
    """Count the steps that were confirmed."""
    ledger = Ledger(url)
    opened.wait(300)
    step = 0
    while not stop.is_set():
        step += 1
        ledger.append(stage, [report(step, loss=1 / step, dev_cer=0.5)])
        with count.get_lock():
            count.value = max(count.value, step)


def test_a_trial_whose_end_was_written_and_not_answered_has_ended_here(url: str, tmp_path: Path) -> None:
    """The connection is lost after the commit, before the answer: the second attempt finds the trial ended."""
    spec, ledger = study_of(url, tmp_path)
    name, _ = add_trial(ledger, spec, "slow")
    lost: list[bool] = []
    commit = ledger._database.engine.dialect.do_commit

    def lose_the_answer(connection: Any) -> None:
        commit(connection)
        if not lost:
            lost.append(True)
            pid = connection.dbapi_connection.info.backend_pid
            with closing(Ledger(url)) as other, other._database.engine.begin() as db:
                db.execute(sa.text(f"select pg_terminate_backend({pid})"))
            connection.dbapi_connection.execute("select 1")  # raises what a lost connection raises

    ledger._database.engine.dialect.do_commit = lose_the_answer  # type: ignore[method-assign]
    assert ledger.end_trial(spec.study, name, "finished")
    assert lost
    assert not ledger.end_trial(spec.study, name, "failed", "second")


def test_a_write_waits_for_a_server_that_is_away_and_says_so(
    server: PostgreSQL,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(database, "WARN_SECONDS", 0.1)
    spec, ledger = study_of(url, tmp_path)
    server.stop()
    coming = threading.Timer(2.0, server.start)
    coming.start()
    with caplog.at_level(logging.WARNING):
        name = run_trial(ledger, spec, "slow", curve={10: 0.5})
    coming.join()
    assert ledger.final(spec.study, name)["dev_cer"] == 0.5
    assert "does not answer; trying again for" in caplog.text
    assert PASSWORD not in caplog.text


def test_a_server_that_stays_away_is_said_after_a_while(
    server: PostgreSQL, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, ledger = study_of(url, tmp_path)
    monkeypatch.setattr(database, "PATIENCE_SECONDS", 1.0)
    server.stop()
    try:
        with pytest.raises(LedgerError, match="see that the server runs and lets this user in"):
            ledger.count(spec.study)
    finally:
        server.start()
    assert ledger.count(spec.study)["unfinished"] == 0
    assert os.environ.get("STUDY_LEDGER") is None


# ---- the order of points ---------------------------------------------------------------------------------------------


def test_points_can_be_seen_in_the_order_of_their_ids(url: str, tmp_path: Path) -> None:
    """The mirror asks for what came after the last id that it has seen: no lower one may come later."""
    spec, ledger = study_of(url, tmp_path)
    _, (stage,) = add_trial(ledger, spec, "slow")
    context = forkserver(__name__)
    writers = [forked(context, _append, url, stage.fingerprint(), first) for first in (1, 2, 3)]
    for writer in writers:
        writer.start()
    seen: list[int] = []
    engine = sa.create_engine(url)
    while any(writer.is_alive() for writer in writers):
        with engine.connect() as db:
            ids = set(db.execute(sa.text("select id from points")).scalars())
        new = ids - set(seen)
        assert not seen or all(one > max(seen) for one in new)
        seen += sorted(new)
    engine.dispose()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(points(url)) == 3 * 100 * 2


def _append(url: str, stage: str, first: int) -> None:
    ledger = Ledger(url)
    for step in range(first, first + 300, 3):
        ledger.append(stage, [report(step, loss=1.0, dev_cer=0.5)])
