"""`study lm train`: an ARPA file of text, of compressed text, and of a corpus folder."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import pytest
from flashlight.lib.text.decoder.kenlm import KenLM
from flashlight.lib.text.dictionary import Dictionary

from tests.study.conftest import Call
from trainables.data.config import FolderConfig, PromptsConfig
from trainables.data.corpus import PROMPTS, read_corpus
from trainables.decoding.ngram import estimate, vocabulary

TEXT = "Hola   AMIGO\n\nhola amiga\r\n  \nadiós amigo\n"
SENTENCES = [["hola", "amigo"], ["hola", "amiga"], ["adiós", "amigo"]]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8", newline="")
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "models" / "lm.arpa"


def train(call: Call, output: Path, *words: object) -> bytes:
    """The ARPA file that the command wrote."""
    assert call("lm", "train", *words, "--output", output) == (0, f"{output}\n", "")
    return output.read_bytes()


def estimated(folder: Path, sentences: Sequence[Sequence[str]], order: int = 3) -> bytes:
    estimate(sentences, order, folder / "expected.arpa")
    return (folder / "expected.arpa").read_bytes()


def test_text_is_a_sentence_a_line_in_small_letters(text: Path, output: Path, call: Call, tmp_path: Path) -> None:
    assert train(call, output, text) == estimated(tmp_path, SENTENCES)


def test_compressed_text_is_text(text: Path, output: Path, call: Call, tmp_path: Path) -> None:
    (tmp_path / "text.gz").write_bytes(gzip.compress(text.read_bytes()))
    assert train(call, output, tmp_path / "text.gz") == estimated(tmp_path, SENTENCES)


def test_several_texts_are_one(text: Path, output: Path, call: Call, tmp_path: Path) -> None:
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"buenas noches"))
    expected = estimated(tmp_path, [*SENTENCES, ["buenas", "noches"]])
    assert train(call, output, text, tmp_path / "text.gz") == expected


@pytest.mark.parametrize("order", [2, 4, 6])
def test_order(text: Path, output: Path, call: Call, tmp_path: Path, order: int) -> None:
    assert train(call, output, text, "--order", order) == estimated(tmp_path, SENTENCES, order)


def test_characters_are_the_units_with_a_mark_for_the_space(
    text: Path, output: Path, call: Call, tmp_path: Path
) -> None:
    characters = [list("|".join(sentence)) for sentence in SENTENCES]
    assert train(call, output, text, "--unit", "characters") == estimated(tmp_path, characters)
    assert "|" in vocabulary(output)


def test_text_of_a_language_is_cleaned_as_its_transcripts_are(output: Path, call: Call, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("¡Hola, amigo! ¿Qué tal?\n", encoding="utf-8")
    train(call, output, tmp_path / "text", "--language", "es")
    assert sorted(vocabulary(output)) == ["amigo", "hola", "qué", "tal"]


def test_of_a_corpus_folder_the_train_split_alone_is_read(
    small_corpus: Path, output: Path, call: Call, tmp_path: Path
) -> None:
    corpus = read_corpus(FolderConfig(root=small_corpus))
    in_file_order = {line.split("\t")[0]: i for i, line in enumerate((small_corpus / "manifest.tsv").open())}
    texts = [u.text or "" for u in sorted(corpus.train, key=lambda u: in_file_order[u.id])]
    assert train(call, output, small_corpus) == estimated(tmp_path, [text.split() for text in texts])
    held_out = {w for u in (*corpus.dev, *corpus.test) for w in (u.text or "").split()}
    assert held_out - set(vocabulary(output))


def test_without_a_column_the_split_is_that_of_training(output: Path, call: Call, tmp_path: Path) -> None:
    """The prompts name no split, and hold transcripts that were guessed from figures, which training leaves out."""
    train(call, output, PROMPTS / "it")
    expected = {w for u in read_corpus(PromptsConfig(language="it")).train for w in (u.text or "").split()}
    assert set(vocabulary(output)) == expected


def test_flashlight_reads_it_and_prefers_what_was_said(text: Path, output: Path, call: Call) -> None:
    train(call, output, text)
    words = vocabulary(output)
    model = KenLM(str(output), Dictionary(words))

    def log10(*sentence: str) -> float:
        state, total = model.start(False), 0.0
        for word in sentence:
            state, value = model.score(state, words.index(word))
            total += value
        return total + float(model.finish(state)[1])

    assert log10("hola", "amiga") > log10("amiga", "hola")
    assert log10("adiós", "amigo") > log10("adiós", "amiga")


class TestRefused:
    @pytest.mark.parametrize("order", ["0", "1", "7"])
    def test_orders_that_kenlm_cannot_read(self, text: Path, output: Path, call: Call, order: str) -> None:
        code, out, err = call("lm", "train", text, "--output", output, "--order", order)
        assert (code, out) == (2, "")
        assert err.startswith("--order must be from 2 to 6")
        assert not output.exists()

    def test_an_order_that_is_no_number(self, text: Path, output: Path, call: Call) -> None:
        with pytest.raises(SystemExit) as caught:
            call("lm", "train", text, "--output", output, "--order", "three")
        assert caught.value.code == 2

    def test_every_missing_file_at_once(self, text: Path, output: Path, call: Call, tmp_path: Path) -> None:
        missing = [tmp_path / "one", tmp_path / "two.gz"]
        code, out, err = call("lm", "train", missing[0], text, missing[1], "--output", output)
        assert (code, out) == (2, "")
        assert err.splitlines() == [f"{path}: no such file or folder" for path in missing]
        assert not output.parent.exists()

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("empty", b""),
            ("blank", b"\n  \n"),
            ("reserved", b"hola <s> amigo"),
            ("latin1", "mañana".encode("latin-1")),
            ("text.gz", b"not compressed"),
            ("short.gz", gzip.compress(b"hola amigo" * 50, mtime=0)[:-9]),
        ],
        ids=["empty", "blank lines", "reserved word", "Latin-1", "not compressed", "cut off"],
    )
    def test_text_that_cannot_be_used(
        self, output: Path, call: Call, tmp_path: Path, name: str, content: bytes
    ) -> None:
        (tmp_path / name).write_bytes(content)
        code, out, err = call("lm", "train", tmp_path / name, "--output", output)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1
        assert not output.exists()

    @pytest.mark.parametrize("header", [None, "id\tpath\tduration_seconds\tsplit\n"], ids=["no table", "no text"])
    def test_a_folder_that_is_no_corpus(self, output: Path, call: Call, tmp_path: Path, header: str | None) -> None:
        folder = tmp_path / "corpus"
        folder.mkdir()
        if header:
            (folder / "manifest.tsv").write_text(f"{header}a\ta.ogg\t1\ttrain\n")
        code, out, err = call("lm", "train", folder, "--output", output)
        assert (code, out) == (2, "")
        assert str(folder / "manifest.tsv") in err
        assert len(err.splitlines()) == 1

    def test_a_place_that_cannot_be_written(self, text: Path, call: Call, tmp_path: Path) -> None:
        code, _, err = call("lm", "train", text, "--output", text / "lm.arpa")
        assert code == 2
        assert str(text) in err
