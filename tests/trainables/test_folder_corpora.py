"""Folders of speech: unlabelled rows, where roots start, corpora that are not there yet, and lengths in epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.conftest import Row, pretrain_finetune, small_trial, spanish_rows, write_corpus
from trainables.data.config import FolderConfig, MixtureConfig, PromptsConfig
from trainables.data.corpus import Corpus, CorpusError, read_corpus, total_seconds
from trainables.stage import Stage
from trainables.trial import TrialConfig, absent, corpora_of, problems, stages_of

SUPERVISED = {"kind": "supervised", "train": {"steps": 4}}


def trial(root: Path | str, regime: dict[str, Any] | None = None, **corpus: Any) -> TrialConfig:
    given = small_trial(Path(root), regime or pretrain_finetune())
    return TrialConfig.model_validate({**given, "corpus": {"kind": "folder", "root": str(root), **corpus}})


def stages(root: Path | str, regime: dict[str, Any] | None = None, **corpus: Any) -> Sequence[Stage]:
    return stages_of(trial(root, regime, **corpus))


# Unlabelled rows


def with_unlabelled(rows: list[Row], **changes: str) -> list[Row]:
    """Every row whose place is divisible by 8, with remainder 7, as an unlabelled one."""
    return [{**row, "split": "unlabelled", **changes} if i % 8 == 7 else row for i, row in enumerate(rows)]


def read(root: Path, rows: list[Row]) -> Corpus:
    return read_corpus(FolderConfig(root=write_corpus(root, rows)))


def ids(rows: list[Row], *splits: str) -> list[str]:
    return sorted(row["id"] for row in rows if row["split"] in splits)


@pytest.mark.parametrize("text", ["", "  ", "un texto"])
def test_unlabelled_rows_join_the_train_audio_in_the_unlabelled_speech_and_no_labelled_split(
    tmp_path: Path, text: str
) -> None:
    rows = with_unlabelled(spanish_rows(40), text=text)
    corpus = read(tmp_path, rows)
    assert ids(rows, "unlabelled")
    assert [u.id for u in corpus.unlabelled] == ids(rows, "train", "unlabelled")
    for split in ("train", "dev", "test"):
        assert [u.id for u in getattr(corpus, split)] == ids(rows, split)
    assert {u.text for u in corpus.unlabelled} == {None}


def test_the_text_of_an_unlabelled_row_changes_nothing(tmp_path: Path) -> None:
    rows = spanish_rows(24)
    without, other = (
        read(tmp_path / name, with_unlabelled(rows, text=text)) for name, text in {"a": "", "b": "otro"}.items()
    )
    assert without.split_hashes() == other.split_hashes()


def test_an_unlabelled_row_changes_pretraining_and_no_labelled_data(tmp_path: Path) -> None:
    rows = spanish_rows(17)
    more = [*rows[:16], {**rows[16], "split": "unlabelled", "text": ""}]
    (pretrain, finetune), (changed, same) = (
        stages(write_corpus(tmp_path / name, own)) for name, own in {"fewer": rows[:16], "more": more}.items()
    )
    assert pretrain.fingerprint() != changed.fingerprint()
    assert finetune.data_fingerprint == same.data_fingerprint


@pytest.mark.parametrize("split", ["train", "dev", "test", ""])
def test_text_is_needed_in_every_other_row(tmp_path: Path, split: str) -> None:
    rows = [{**row, "split": split, "text": " "} if i == 3 else row for i, row in enumerate(spanish_rows(16))]
    with pytest.raises(CorpusError, match=rf"manifest\.tsv:5: utterance '{rows[3]['id']}' has no text$"):
        read(tmp_path, rows)


def test_a_corpus_needs_labelled_splits_whatever_is_unlabelled(tmp_path: Path) -> None:
    rows = [{**row, "split": "unlabelled"} if row["split"] == "train" else row for row in spanish_rows(16)]
    with pytest.raises(CorpusError, match="the train split has no utterance"):
        read(tmp_path, rows)


# Where roots start


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$CORPORA, with the corpus `spanish/small`."""
    write_corpus(tmp_path / "corpora" / "spanish" / "small", spanish_rows(16))
    monkeypatch.setenv("CORPORA", str(tmp_path / "corpora"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "corpora"


def test_a_relative_root_starts_at_corpora(corpora: Path) -> None:
    assert read_corpus(FolderConfig(root=Path("spanish/small"))) == read_corpus(
        FolderConfig(root=corpora / "spanish" / "small")
    )


def test_an_absolute_root_does_not(corpora: Path, tmp_path: Path) -> None:
    elsewhere = write_corpus(tmp_path / "elsewhere", spanish_rows(24))
    assert read_corpus(FolderConfig(root=elsewhere)).train[0].path.is_relative_to(elsewhere)


def test_nor_does_one_in_the_home_folder(corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = write_corpus(tmp_path / "home" / "small", spanish_rows(24))
    monkeypatch.setenv("HOME", str(home.parent))
    assert FolderConfig(root=Path("~/small")).root == home


def test_without_corpora_a_relative_root_starts_at_the_working_directory(
    corpora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CORPORA")
    monkeypatch.chdir(corpora / "spanish")
    assert FolderConfig(root=Path("small")).root == corpora / "spanish" / "small"


def test_a_relative_corpora_starts_at_the_working_directory(corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORPORA", "corpora")
    assert FolderConfig(root=Path("spanish/small")).root == corpora / "spanish" / "small"


def test_the_corpus_of_a_stage_has_an_absolute_root_and_can_be_read_from_anywhere(
    corpora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = stages("spanish/small")
    assert [stage.corpus for stage in found] == [FolderConfig(root=corpora / "spanish" / "small")] * 2
    monkeypatch.delenv("CORPORA")
    monkeypatch.chdir("/")
    assert read_corpus(found[0].corpus).train
    assert corpora_of(trial(corpora / "spanish" / "small")) == [found[0].corpus]


def test_where_a_root_starts_is_no_part_of_a_stage_s_identity(corpora: Path) -> None:
    relative, absolute = stages("spanish/small"), stages(corpora / "spanish" / "small")
    assert [stage.fingerprint() for stage in relative] == [stage.fingerprint() for stage in absolute]


def test_a_corpus_of_a_stage_of_its_own_is_found_too(corpora: Path) -> None:
    regime = pretrain_finetune()
    regime["pretrain"] |= {"corpus": {"kind": "folder", "root": "spanish/small"}}
    pretrain, finetune = stages_of(TrialConfig.model_validate({"regime": regime}))
    assert pretrain.corpus == FolderConfig(root=corpora / "spanish" / "small")
    assert finetune.corpus == PromptsConfig()


def test_the_home_of_nobody_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"root\n.*home directory"):
        trial("~nobody-here/corpus")


# Corpora that are not there


def test_an_absent_corpus_is_a_problem_with_its_file_and_the_rule(tmp_path: Path) -> None:
    expected = f"{tmp_path}/absent/manifest.tsv: no such file; a corpus folder needs a manifest.tsv"
    assert list(problems(trial(tmp_path / "absent"))) == [("corpus", expected)]
    assert absent(FolderConfig(root=tmp_path / "absent")) == [expected]


def test_an_absent_corpus_of_a_stage_is_a_problem_of_the_regime(tmp_path: Path, small_corpus: Path) -> None:
    regime = pretrain_finetune()
    regime["pretrain"] |= {"corpus": {"kind": "folder", "root": str(tmp_path / "absent")}}
    ((field, message),) = problems(trial(small_corpus, regime))
    assert field == "regime"
    assert message.startswith(f"{tmp_path}/absent/manifest.tsv: no such file")


def test_an_absent_corpus_is_fine_where_it_may_be_absent(tmp_path: Path) -> None:
    absent = trial(tmp_path / "absent")
    assert not list(problems(absent, absent_is_fine=True))
    assert [stage.kind for stage in stages_of(absent)] == ["pretrain", "finetune"]
    assert {stage.corpus for stage in stages_of(absent)} == {FolderConfig(root=tmp_path / "absent")}


def test_a_mixture_with_an_absent_part_is_absent(tmp_path: Path) -> None:
    absent = FolderConfig(root=tmp_path / "absent")
    for corpus in (
        MixtureConfig(labelled=absent, unlabelled=(PromptsConfig(),)),
        MixtureConfig(labelled=PromptsConfig(), unlabelled=(PromptsConfig(), absent)),
    ):
        given = TrialConfig.model_validate({"corpus": corpus, "regime": pretrain_finetune()})
        assert not list(problems(given, absent_is_fine=True))
        ((field, message),) = problems(given)
        assert (field, message.partition(":")[0]) == ("corpus", f"{tmp_path}/absent/manifest.tsv")


def test_a_corpus_that_is_there_and_broken_is_a_problem_even_where_it_may_be_absent(tmp_path: Path) -> None:
    root = write_corpus(tmp_path, [{**row, "duration_seconds": "long"} for row in spanish_rows(8)])
    ((field, message),) = problems(trial(root), absent_is_fine=True)
    assert field == "corpus"
    assert message.startswith(f"{root}/manifest.tsv:2: duration_seconds must be a positive number")


def absent_fingerprints(root: Path, **corpus: Any) -> list[str]:
    return [stage.fingerprint() for stage in stages(root / "absent", **corpus)]


def test_labelled_budgets_of_an_absent_corpus_share_their_pretraining(tmp_path: Path) -> None:
    budgets = [absent_fingerprints(tmp_path, labelled_minutes=minutes) for minutes in (10, 60, 600)]
    assert len({pretrain for pretrain, _ in budgets}) == 1
    assert len({finetune for _, finetune in budgets}) == 3


@pytest.mark.parametrize("setting", ["unlabelled_hours", "unlabelled_fraction"])
def test_subsets_of_the_unlabelled_speech_of_an_absent_corpus_differ(tmp_path: Path, setting: str) -> None:
    found = [stages(tmp_path / "absent", **{setting: value}) for value in (0.25, 0.5, 1)]
    assert len({pretrain.fingerprint() for pretrain, _ in found}) == 3
    assert len({finetune.data_fingerprint for _, finetune in found}) == 1


def test_absent_corpora_in_other_folders_or_of_other_seeds_differ(tmp_path: Path) -> None:
    budget: dict[str, Any] = {"labelled_minutes": 10, "unlabelled_hours": 1}
    found = [
        stages(tmp_path / name, **budget, subset_seed=seed) for name, seed in (("one", 0), ("other", 0), ("one", 1))
    ]
    for index in range(2):
        assert len({chain[index].data_fingerprint for chain in found}) == 3


def test_the_exponent_of_an_absent_mixture_changes_pretraining_alone(tmp_path: Path) -> None:
    absent = FolderConfig(root=tmp_path / "absent")
    found = [
        stages_of(
            TrialConfig.model_validate(
                {
                    "corpus": MixtureConfig(labelled=absent, unlabelled=(absent,), sampling_exponent=exponent),
                    "regime": pretrain_finetune(),
                }
            )
        )
        for exponent in (0.5, 1)
    ]
    assert len({pretrain.data_fingerprint for pretrain, _ in found}) == 2
    assert len({finetune.data_fingerprint for _, finetune in found}) == 1


def test_labelled_subsets_of_other_seeds_of_an_absent_corpus_share_their_pretraining(tmp_path: Path) -> None:
    """As those of a corpus that is there do (`test_subsets.py`)."""
    found = [absent_fingerprints(tmp_path, labelled_minutes=10, subset_seed=seed) for seed in (0, 1)]
    assert len({pretrain for pretrain, _ in found}) == 1


# Lengths in epochs


def with_epochs(pretrain: float, finetune: float) -> dict[str, Any]:
    return {
        "kind": "pretrain_finetune",
        "pretrain": {"epochs": pretrain, "batch_seconds": 4},
        "finetune": {"epochs": finetune, "batch_seconds": 3},
    }


@pytest.mark.parametrize(("pretrain", "finetune"), [(1, 2), (3.3, 0.5), (0.0001, 20)])
def test_epochs_are_passes_over_the_speech_that_the_stage_reads(
    tmp_path: Path, pretrain: float, finetune: float
) -> None:
    root = write_corpus(tmp_path, with_unlabelled(spanish_rows(40)))
    corpus = read_corpus(FolderConfig(root=root))
    unlabelled, labelled = total_seconds(corpus.unlabelled), total_seconds(corpus.train)
    assert unlabelled > labelled
    assert [stage.steps for stage in stages(root, with_epochs(pretrain, finetune))] == [
        max(1, round(pretrain * unlabelled / 4)),
        max(1, round(finetune * labelled / 3)),
    ]


def test_epochs_of_a_subset_are_passes_over_the_subset(small_corpus: Path) -> None:
    settings: dict[str, Any] = {"labelled_minutes": 0.3, "unlabelled_fraction": 0.5}
    corpus = read_corpus(FolderConfig(root=small_corpus, **settings))
    steps = [stage.steps for stage in stages(small_corpus, with_epochs(8, 9), **settings)]
    assert steps == [round(8 * total_seconds(corpus.unlabelled) / 4), round(9 * total_seconds(corpus.train) / 3)]
    assert steps != [stage.steps for stage in stages(small_corpus, with_epochs(8, 9))]


def test_epochs_of_joint_training_are_passes_over_the_labelled_speech(tmp_path: Path) -> None:
    root = write_corpus(tmp_path, with_unlabelled(spanish_rows(40)))
    regime = {"kind": "joint", "train": {"epochs": 5, "batch_seconds": 3}}
    (stage,) = stages(root, regime)
    assert stage.steps == round(5 * total_seconds(read_corpus(FolderConfig(root=root)).train) / 3)


def test_epochs_and_as_many_steps_are_one_stage(small_corpus: Path) -> None:
    in_epochs = stages(small_corpus, {"kind": "supervised", "train": {"epochs": 2}})
    in_steps = stages(small_corpus, {"kind": "supervised", "train": {"steps": in_epochs[0].steps}})
    assert in_epochs[0].fingerprint() == in_steps[0].fingerprint()


@pytest.mark.parametrize("length", [{}, {"steps": 3, "epochs": 2}, {"steps": None, "epochs": None}])
def test_a_stage_has_one_length(length: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give either steps or epochs"):
        TrialConfig.model_validate({"regime": {"kind": "supervised", "train": length}})


def test_epochs_of_an_absent_corpus_are_those_of_its_budgets(tmp_path: Path) -> None:
    budget = {"labelled_minutes": 10, "unlabelled_hours": 2}
    found = stages(tmp_path / "absent", with_epochs(3, 5), **budget)
    assert [stage.steps for stage in found] == [3 * 2 * 3600 / 4, 5 * 10 * 60 / 3]
    assert not list(problems(trial(tmp_path / "absent", with_epochs(3, 5), **budget), absent_is_fine=True))


def test_hours_and_fraction_of_an_absent_corpus_are_at_most_the_hours(tmp_path: Path) -> None:
    """Of a corpus that is there the smaller one counts; how much the fraction is, is not known before."""
    budget = {"labelled_minutes": 10, "unlabelled_hours": 2, "unlabelled_fraction": 0.5}
    pretrain, _ = stages(tmp_path / "absent", with_epochs(3, 5), **budget)
    assert pretrain.steps == 3 * 2 * 3600 / 4


@pytest.mark.parametrize(
    ("budget", "stream"),
    [
        ({}, "unlabelled"),
        ({"labelled_minutes": 10}, "unlabelled"),
        ({"unlabelled_hours": 1}, "labelled"),
        ({"unlabelled_fraction": 0.5, "labelled_minutes": 10}, "unlabelled"),
    ],
)
def test_epochs_of_an_absent_corpus_of_unknown_size_are_a_problem_that_says_what_to_give(
    tmp_path: Path, budget: dict[str, float], stream: str
) -> None:
    given = trial(tmp_path / "absent", with_epochs(3, 5), **budget)
    ((field, message),) = problems(given, absent_is_fine=True)
    assert field == "regime"
    length = {"unlabelled": 3, "labelled": 5}[stream]
    assert message == f"epochs: {length} of the {stream} speech are not known before the corpus is there; give steps"
    with pytest.raises(ValueError, match=r"^epochs: .*; give steps$"):
        stages_of(given)
