from __future__ import annotations

import csv
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from tests.conftest import Row, spanish_rows, write_corpus
from trainables.data.config import FolderConfig, Language, MixtureConfig, PromptsConfig
from trainables.data.corpus import LABELLED, PROMPTS, Corpus, CorpusError, Split, read_corpus, read_manifest, split_of
from trainables.data.text import normalise

LANGUAGES: tuple[Language, ...] = get_args(Language)

GOLDEN_SPLIT_HASHES: dict[Language, dict[str, str]] = {
    "en": {
        "train": "d33bea7274ee33c7d0cc277c3d59d143413e633395bf103c38c34143c238641b",
        "dev": "d1fb10f4caf927e3265301c03f28d27b8422af3502671ad2c8a91d61a77964b9",
        "test": "4e3c33a3df94b66e3b2f321afa41bf5cdc65aa455747dd44b81c8d3eefac7ca2",
        "unlabelled": "9dede965a9b35d9502bf3789421cdfca0a26aa85dee1d3ebed1c488df8c57ad2",
    },
    "es": {
        "train": "31b4cd9e4d775a111b86b535f682b4dcecbafad96c8ef359193db823505ecfea",
        "dev": "d2f2104d4b7047d28b12bef9516d8f68868b5f7702882495b367ae841ea6985e",
        "test": "a2765b183d6edc9dd91edf7eb608245f21552f85d46efe4eb79cc9e98a0e93c6",
        "unlabelled": "d9beb9269912861c9d00d43b883101f4d04056bdcb7b8e3037966a2541b69031",
    },
    "fr": {
        "train": "aa2261ef0efc388b02a47ec4e24d2ea55063ede70fff51416887befdff5c77f7",
        "dev": "e70f198b5177f9803c5d4f268373778f87ee41c7d2eb858aaf2ba4f7d8384d6c",
        "test": "e0795490ece8f123ac059e914f98092ac85dde7ea2a1ae77e988cf92890b1753",
        "unlabelled": "203f149a56f7025b3be2f2ee317e0bc5f08b0e476fcdea96f800569eeb065385",
    },
    "it": {
        "train": "fc791b2b5c5a96fcb01750a1b4fea9bfa67c06bd45af5dee7b5104e3a35e29bf",
        "dev": "5d91e54a893c5be7c79ba7bb62716882dcb89b5faf246df09cca6b5070673c1c",
        "test": "26a22d9e990f7ad68953e67d63c7809d6d760b20c9d070440e5a754466776b8f",
        "unlabelled": "e623e3c5dd5f097bbade9f402c780c80d17e21e2e9e03488c2b48655fba0f058",
    },
    "ru": {
        "train": "d9c09d34a58bfa6f77a0141ca8bc758880592cbb2ff566eb92f565d41b16371c",
        "dev": "3618393c377487efcddb295ad84aaaa816b84e05776e00d150db5db81418544a",
        "test": "17aadf4ac10dc6a408d02f50b2d99d851895aa4f7ba0d9196b16019c4fad9fac",
        "unlabelled": "9f6b5923c1c5d7e512db11bee8004d18b4b8a82cf68196de25a0948fc936c5b2",
    },
}


def manifest_rows(language: Language) -> list[Row]:
    with (PROMPTS / language / "manifest.tsv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_sentence_is_in_two_splits(language: Language) -> None:
    corpus = read_corpus(PromptsConfig(language=language))
    train, dev, test = ({normalise(u.text or "") for u in part} for part in (corpus.train, corpus.dev, corpus.test))
    assert not train & dev
    assert not train & test
    assert not dev & test


@pytest.mark.parametrize("language", LANGUAGES)
def test_splits_are_about_80_10_10_and_cover_the_manifest(language: Language) -> None:
    """Within four standard deviations of a binomial draw."""
    corpus = read_corpus(PromptsConfig(language=language))
    total = sum(row["has_digits"] == "0" for row in manifest_rows(language))
    sizes = {"train": len(corpus.train), "dev": len(corpus.dev), "test": len(corpus.test)}
    assert sum(sizes.values()) == total
    for split, share in {"train": 0.8, "dev": 0.1, "test": 0.1}.items():
        assert abs(sizes[split] - share * total) < 4 * math.sqrt(total * share * (1 - share))


@pytest.mark.parametrize("language", LANGUAGES)
def test_split_hashes_are_the_golden_ones(language: Language) -> None:
    """Regenerate by printing `read_corpus(PromptsConfig(language=...)).split_hashes()`.

    Change them only together with the embedded corpus: every pinned result rests on these splits.
    """
    assert read_corpus(PromptsConfig(language=language)).split_hashes() == GOLDEN_SPLIT_HASHES[language]


@pytest.mark.parametrize("language", LANGUAGES)
def test_rows_with_digits_are_left_out(language: Language) -> None:
    corpus = read_corpus(PromptsConfig(language=language))
    left_out = {f"{language}/{row['id']}" for row in manifest_rows(language) if row["has_digits"] == "1"}
    used = {u.id for part in (corpus.train, corpus.dev, corpus.test, corpus.unlabelled) for u in part}
    assert left_out
    assert not left_out & used


@pytest.mark.parametrize("language", LANGUAGES)
def test_unlabelled_is_the_train_audio_without_its_text(language: Language) -> None:
    corpus = read_corpus(PromptsConfig(language=language))
    assert [(u.id, u.path) for u in corpus.unlabelled] == [(u.id, u.path) for u in corpus.train]
    assert {u.text for u in corpus.unlabelled} == {None}
    assert all(u.text for u in corpus.train)


def mixture(*unlabelled: Language) -> Corpus:
    """Spanish with the train audio of these languages as unlabelled speech, each utterance once an epoch."""
    sources = tuple(PromptsConfig(language=language) for language in unlabelled)
    return read_corpus(MixtureConfig(labelled=PromptsConfig(language="es"), unlabelled=sources, sampling_exponent=1))


def test_a_mixture_has_the_train_audio_of_its_languages_and_nothing_else() -> None:
    plain = read_corpus(PromptsConfig(language="es"))
    more = mixture("es", "fr", "ru")
    assert (more.train, more.dev, more.test) == (plain.train, plain.dev, plain.test)
    trains = [read_corpus(PromptsConfig(language=language)).train for language in ("es", "fr", "ru")]
    assert {u.path for u in more.unlabelled} == {u.path for train in trains for u in train}
    assert len(more.unlabelled) == sum(map(len, trains))
    assert {u.text for u in more.unlabelled} == {None}


def test_a_mixture_of_the_labelled_language_alone_is_that_corpus() -> None:
    assert mixture("es") == read_corpus(PromptsConfig(language="es"))


def test_a_language_that_is_named_twice_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"id 'fr/.*' occurs twice in a mixture"):
        mixture("fr", "es", "fr")


@pytest.mark.parametrize("text", ["uno", "  UNO ", "Uno\t"])
def test_split_depends_on_the_normalised_text_alone(text: str) -> None:
    assert split_of(text) == split_of("uno")


def test_hashes_depend_neither_on_the_folder_nor_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = spanish_rows(16)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert shuffled != rows
    one, other = (
        read_corpus(FolderConfig(root=write_corpus(tmp_path / name, order)))
        for name, order in {"one": rows, "elsewhere": shuffled}.items()
    )
    assert one.split_hashes() == other.split_hashes()


def test_the_order_of_rows_does_not_change_the_order_of_utterances(tmp_path: Path) -> None:
    """Batches are drawn by position: what has one fingerprint must train in one order."""
    rows = spanish_rows(16)
    one, other = (
        read_corpus(FolderConfig(root=write_corpus(tmp_path / name, order)))
        for name, order in {"one": rows, "other": rows[::-1]}.items()
    )
    assert [u.id for u in one.train] == [u.id for u in other.train]
    assert [u.id for u in one.unlabelled] == [u.id for u in other.unlabelled]


def test_the_order_of_a_mixture_s_languages_does_not_change_the_order_of_utterances() -> None:
    one, other = mixture("es", "fr", "ru"), mixture("ru", "es", "fr")
    assert one.split_hashes() == other.split_hashes()
    assert [u.id for u in one.unlabelled] == [u.id for u in other.unlabelled]


@pytest.mark.parametrize(
    ("field", "value", "changed_parts"),
    [
        ("text", "otra frase", {"train"}),
        ("id", "another-id", {"train", "unlabelled"}),
        ("duration_seconds", "1.234", {"train", "unlabelled"}),
        ("split", "dev", {"train", "dev", "unlabelled"}),
    ],
)
def test_hashes_depend_on_what_is_trained_on(tmp_path: Path, field: str, value: str, changed_parts: set[str]) -> None:
    rows = spanish_rows(16)
    assert rows[2]["split"] == "train"
    before = read_corpus(FolderConfig(root=write_corpus(tmp_path / "a", rows))).split_hashes()
    rows[2] = {**rows[2], field: value}
    after = read_corpus(FolderConfig(root=write_corpus(tmp_path / "b", rows))).split_hashes()
    assert {part for part in before if before[part] != after[part]} == changed_parts


def test_hashes_depend_on_the_audio_file(tmp_path: Path) -> None:
    rows = spanish_rows(16)
    root = write_corpus(tmp_path, rows)
    before = read_corpus(FolderConfig(root=root)).split_hashes()
    with (root / rows[2]["path"]).open("ab") as stream:
        stream.write(b"\0")
    after = read_corpus(FolderConfig(root=root)).split_hashes()
    assert {part for part in before if before[part] != after[part]} == {"train", "unlabelled"}


def without(name: str) -> Callable[[Row], Row]:
    return lambda row: {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize("name", ["id", "path", "duration_seconds", "text"])
def test_a_missing_column_is_named_with_the_first_line(tmp_path: Path, name: str) -> None:
    rows = spanish_rows(3)
    root = write_corpus(tmp_path, rows)
    text = "\n".join("\t".join(without(name)(row).values()) for row in rows)
    (root / "manifest.tsv").write_text("\t".join(without(name)(rows[0])) + "\n" + text)
    with pytest.raises(CorpusError, match=rf"{re.escape(str(root))}/manifest\.tsv:1: missing column\(s\) {name}$"):
        read_manifest(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "SAME"}, "id 'SAME' occurs twice"),
        ({"path": "audio/absent.ogg"}, "audio file 'audio/absent.ogg' does not exist"),
        ({"path": ""}, "utterance '.*' has no path"),
        ({"path": "../outside.ogg"}, r"path '../outside.ogg' leaves the corpus folder"),
        ({"path": "/etc/hostname"}, "path '/etc/hostname' leaves the corpus folder"),
        ({"duration_seconds": "long"}, "duration_seconds must be a positive number, got 'long'"),
        ({"duration_seconds": ""}, "utterance '.*' has no duration_seconds"),
        ({"duration_seconds": "0"}, "duration_seconds must be a positive number, got '0'"),
        ({"duration_seconds": "-1.5"}, "duration_seconds must be a positive number, got '-1.5'"),
        ({"duration_seconds": "nan"}, "duration_seconds must be a positive number, got 'nan'"),
        ({"duration_seconds": "inf"}, "duration_seconds must be a positive number, got 'inf'"),
        ({"text": "   "}, "utterance '.*' has no text"),
        ({"split": "eval"}, "split must be one of train, dev, test, unlabelled, got 'eval'"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path: Path, change: Row, message: str) -> None:
    root = write_corpus(tmp_path / "corpus", spanish_rows(4))
    (tmp_path / "outside.ogg").write_bytes(b"not in the corpus")
    lines = [{**row, "id": "SAME"} if i == 0 else row for i, row in enumerate(spanish_rows(4))]
    lines[2] = {**lines[2], **change}
    text = "\n".join("\t".join(row.values()) for row in lines)
    (root / "manifest.tsv").write_text("\t".join(lines[0]) + "\n" + text)
    with pytest.raises(CorpusError, match=rf"^{re.escape(str(root))}/manifest\.tsv:4: {message}"):
        read_corpus(FolderConfig(root=root))


@pytest.mark.parametrize("last", ["path", "text"])
def test_a_row_that_ends_early_is_named_with_file_and_line(tmp_path: Path, last: str) -> None:
    rows = spanish_rows(3)
    root = write_corpus(tmp_path, rows)
    names = [*(name for name in rows[0] if name != last), last]
    lines = ["\t".join(names), *("\t".join(row[name] for name in names) for row in rows)]
    lines[2] = lines[2].rpartition("\t")[0]
    (root / "manifest.tsv").write_text("\n".join(lines))
    with pytest.raises(CorpusError, match=r"manifest\.tsv:3: "):
        read_manifest(root)


@pytest.mark.parametrize("split", LABELLED)
def test_an_empty_split_is_named(tmp_path: Path, split: Split) -> None:
    root = write_corpus(tmp_path, [row for row in spanish_rows(16) if row["split"] != split])
    with pytest.raises(CorpusError, match=rf"^{re.escape(str(root))}: the {split} split has no utterance"):
        read_corpus(FolderConfig(root=root))


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=rf"^{re.escape(str(tmp_path))}/manifest\.tsv: no such file"):
        read_corpus(FolderConfig(root=tmp_path))


def test_a_manifest_without_usable_rows_is_named(tmp_path: Path) -> None:
    root = write_corpus(tmp_path, [{**row, "has_digits": "1"} for row in spanish_rows(3)])
    with pytest.raises(CorpusError, match=r"manifest\.tsv: no usable utterance"):
        read_corpus(FolderConfig(root=root))


def test_without_a_split_column_the_text_decides(tmp_path: Path) -> None:
    rows = spanish_rows(40)
    root = write_corpus(tmp_path, [without("split")(row) for row in rows])
    assert {u.id: u.split for u in read_manifest(root)} == {row["id"]: split_of(row["text"]) for row in rows}


def test_text_is_normalised_on_reading(tmp_path: Path) -> None:
    row = {**spanish_rows(1)[0], "text": "  Número  DOS "}
    assert read_manifest(write_corpus(tmp_path, [row]))[0].text == "número dos"
