"""A whole study whose stages are in a bucket: the next machine, with an empty folder, trains nothing again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from study.audit import audit
from study.ledger import Ledger
from study.run import main
from study.spec import read_spec
from tests.buckets import BUCKET, BucketServer, bucket_server
from tests.conftest import pretrain_finetune, small_trial, spanish_rows, write_corpus
from tests.study.test_end_to_end import run, write_sweep
from trainables.object_storage import ObjectStorage

__all__ = ["bucket_server"]

pytestmark = [pytest.mark.slow, pytest.mark.long]

URL = f"s3://{BUCKET}/study"


def test_a_study_in_a_bucket_goes_on_on_a_machine_that_has_nothing(
    bucket_server: BucketServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Credentials are in the environment alone, as they are on a cluster."""
    for name, value in bucket_server.environment.items():
        monkeypatch.setenv(name, value)
    corpus = write_corpus(tmp_path / "corpus", spanish_rows(16))
    arms = {"one": {"trial": small_trial(corpus, pretrain_finetune(2))}}
    sweep = write_sweep(tmp_path / "sweep.yaml", arms, stages=URL, search={"trials": 1, "metric": "dev_cer"})
    code, output = run(sweep)
    assert code == 0, output
    objects = {key: ObjectStorage(URL).read(key) for key in ObjectStorage(URL).list("")}
    assert sum(key.endswith("/DONE") for key in objects) == 4  # two stages of two seeds

    elsewhere = tmp_path / "elsewhere"
    code, output = run(sweep, f"storage={elsewhere}")
    assert code == 0, output
    assert {key: ObjectStorage(URL).read(key) for key in ObjectStorage(URL).list("")} == objects
    curves = []
    for storage in (tmp_path / "results", elsewhere):
        spec, ledger = read_spec(sweep, [f"storage={storage}"]), Ledger.in_folder(storage)
        assert audit(spec, ledger) == []
        curves.append([ledger.curve(spec.study, trial.trial) for trial in ledger.trials(spec.study)])
    assert curves[0] == curves[1]  # times included
    assert not list(elsewhere.glob("stages/*/*/*.safetensors"))

    assert main(["errors", "one-000", "--storage", str(elsewhere), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rates"]
    assert len(list(elsewhere.glob("stages/finetune/*/DONE"))) == 1  # now one is here
