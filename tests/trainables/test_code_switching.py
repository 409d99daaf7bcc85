"""Code-switched speech from the folder to the error rates: real voices, switches that are joints of two recordings."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from study.spec import read_spec
from tests.conftest import SMALL_MODEL, spanish_rows, write_corpus
from tests.trainables.test_loop import run
from trainables.data.audio import load_audio
from trainables.data.config import SAMPLE_RATE_HZ, PromptsConfig
from trainables.data.corpora.folder import CORPUS
from trainables.data.corpora.prepare import prepare
from trainables.data.corpus import Utterance, read_corpus
from trainables.decoding.config import LanguageModelConfig
from trainables.evaluate import read_hypotheses
from trainables.scoring import error_rates, mixed_tokens, script_of
from trainables.settings_file import SettingsError
from trainables.store import StageStore
from trainables.trial import TrialConfig, lacks_metric, problems, stages_of

SPLITS = ("dev", "test", "train", "train")


def short(language: str) -> Iterator[Utterance]:
    corpus = read_corpus(PromptsConfig.model_validate({"language": language}))
    return (u for u in corpus.train if u.duration_seconds < 2 and u.text and u.text.isascii() == (language == "es"))


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus of 24 utterances; every third one is Spanish and Russian, the others are one of them."""
    root = tmp_path_factory.mktemp("code-switched")
    rows = []
    for number, pair in enumerate(zip(range(24), short("es"), short("ru"), strict=False)):
        _, spanish, russian = pair
        said = ((spanish, russian), (spanish,), (russian,))[number % 3]
        samples = np.concatenate([load_audio(u.path).astype(np.float32) for u in said])
        soundfile.write(root / f"{number}.wav", samples.clip(-1, 1), SAMPLE_RATE_HZ)
        text = " ".join(u.text or "" for u in said)
        rows.append({"id": str(number), "path": f"{number}.wav", "text": text, "split": SPLITS[number % 4]})
    with (root / "manifest.tsv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, ["id", "path", "text", "split"], delimiter="\t", quoting=csv.QUOTE_NONE)
        table.writeheader()
        table.writerows(rows)
    output = tmp_path_factory.mktemp("prepared")
    prepared = prepare(CORPUS, "folder", root, output)
    assert prepared.findings == {}
    return output


def trial(corpus: Path) -> TrialConfig:
    steps = {"steps": 2, "batch_seconds": 8, "report_every": 1, "evaluate_every": 2}
    return TrialConfig.model_validate(
        {
            "corpus": {"kind": "folder", "root": str(corpus)},
            "model": SMALL_MODEL,
            "regime": {"kind": "supervised", "train": steps},
            "language_model": {"unit": "symbols"},
        }
    )


def test_a_trial_reports_the_mixed_error_rate_with_its_breakdown_with_and_without_a_language_model(
    joined: Path, tmp_path: Path
) -> None:
    store = StageStore(tmp_path)
    train, decode = stages_of(trial(joined))
    trained, decoded = run(train, store)[-1].metrics, run(decode, store)[-1].metrics
    names = {"wer", "cer", "mer", "mer_switched", "mer_monolingual", "mer_latin", "mer_cyrillic", "pier"}
    assert {f"dev_{name}" for name in names} <= trained.keys()
    assert {f"test_{name}_lm" for name in names} | {f"dev_{name}_lm" for name in names} == decoded.keys()
    dev = read_hypotheses(store.folder(train) / "hypotheses-dev.jsonl")
    assert error_rates(dev)["mer"] == trained["dev_mer"]


def test_weights_are_kept_by_the_mixed_error_rate_and_all_results_on_dev_are_theirs(
    joined: Path, tmp_path: Path
) -> None:
    store = StageStore(tmp_path)
    train, _ = stages_of(trial(joined))
    reports = [r.metrics for r in run(train.with_(steps=8), store)]
    evaluated = [m for m in reports if "dev_mer" in m]
    assert len(evaluated) == 4
    last = reports[-1]
    kept = min(evaluated, key=lambda m: (min(m["dev_mer"], 0.9), m["dev_cer"]))
    names = [name for name in kept if name.startswith("dev_")]
    assert {f"kept_{name}": kept[name] for name in names} == {
        k: v for k, v in last.items() if k.startswith("kept_dev_")
    }
    dev = read_hypotheses(store.folder(train.with_(steps=8)) / "hypotheses-dev.jsonl")
    assert error_rates(dev)["mer"] == last["kept_dev_mer"]


def test_words_are_no_units_where_the_script_does_not_separate_them(joined: Path, tmp_path: Path) -> None:
    for source in joined.rglob("*"):
        if source.is_file():
            (tmp_path / source.relative_to(joined)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / source.relative_to(joined)).write_bytes(source.read_bytes())
    manifest = tmp_path / "manifest.tsv"
    assert list(problems(trial(joined).with_(language_model=LanguageModelConfig()))) == []
    manifest.write_text(manifest.read_text("utf-8").replace("\u0430", "我"), encoding="utf-8")
    asked = trial(tmp_path).with_(language_model=LanguageModelConfig())
    ((field, message),) = problems(asked)
    assert (field, message.split("; ")[1]) == ("language_model", "take unit: symbols")


def test_the_corpus_mixes_scripts_within_utterances(joined: Path) -> None:
    texts = [u.text or "" for u in read_corpus(trial(joined).corpus).train]
    scripts = [{script_of(token) for token in mixed_tokens(text)} for text in texts]
    assert {frozenset(s) for s in scripts} == {
        frozenset({"latin", "cyrillic"}),
        frozenset({"latin"}),
        frozenset({"cyrillic"}),
    }


def test_a_point_of_the_space_without_a_mixed_error_rate_is_refused(joined: Path, tmp_path: Path) -> None:
    """Before anything starts, with the place in the file."""
    asked = trial(joined).model_dump(mode="json", exclude_none=True)
    sweep = {
        "study": "mixed",
        "question": "Is it mixed?",
        "storage": str(tmp_path / "results"),
        "trial": asked,
        "arms": {"one": {"space": {"corpus.root": {"kind": "grid", "choices": [str(joined), str(tmp_path / "es")]}}}},
        "search": {"trials": 1, "metric": "dev_mer"},
        "convergence": {"metric": "dev_mer", "target": 0.5},
    }
    write_corpus(tmp_path / "es", spanish_rows(24))
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep), encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        read_spec(path)
    (message,) = caught.value.errors
    assert (
        f"corpus.root: '{tmp_path / 'es'}' is not possible: there is no dev_mer on a dev split in one script" in message
    )


def test_the_mixed_error_rate_may_be_asked_for_where_speech_mixes_scripts_alone(joined: Path) -> None:
    assert lacks_metric(trial(joined), "dev_mer") is None
    spanish = trial(joined).with_(corpus=PromptsConfig(language="es"))
    assert "one script" in str(lacks_metric(spanish, "dev_mer"))
