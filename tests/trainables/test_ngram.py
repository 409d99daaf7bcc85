"""Language models: the numbers of KenLM's own estimator, and files that KenLM reads."""

from __future__ import annotations

import gzip
import itertools
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from flashlight.lib.text.decoder.kenlm import KenLM
from flashlight.lib.text.dictionary import Dictionary
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.golden.ngram import CASES, Case, sentences
from trainables.data.config import Language
from trainables.decoding import ngram
from trainables.decoding.ngram import END, MAX_ORDER, UNKNOWN, estimate, vocabulary

Arpa = dict[str, tuple[float, float]]
Sentences = list[list[str]]


def read_arpa(path: Path) -> tuple[list[int], Arpa]:
    """The sizes in the header, and log10 of probability and back-off weight of each n-gram, by its words."""
    sizes, grams = [], {}
    for line in path.read_text(encoding="utf-8").split("\n"):
        fields = line.split("\t")
        if line.startswith("ngram "):
            sizes.append(int(line.split("=")[1]))
        elif len(fields) > 1:
            grams[fields[1]] = (float(fields[0]), float(fields[2]) if len(fields) > 2 else 0.0)
    return sizes, grams


def assert_same_model(found: Path, expected: Path) -> None:
    (found_sizes, found_grams), (expected_sizes, expected_grams) = read_arpa(found), read_arpa(expected)
    assert found_sizes == expected_sizes
    assert sum(found_sizes) == len(found_grams)
    assert found_grams == {words: pytest.approx(numbers, abs=1e-5) for words, numbers in expected_grams.items()}


@pytest.fixture
def without_lmplz(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path.stem)
@pytest.mark.usefixtures("without_lmplz")
def test_probabilities_and_weights_are_those_that_lmplz_wrote(case: Case, tmp_path: Path) -> None:
    """Against files of kenlm 0.3.0 (`python -m tests.golden.ngram`): closed-form discounts and fallbacks."""
    estimate(iter(sentences(case.language, case.unit, case.utterances)), case.order, tmp_path / "lm.arpa")
    assert_same_model(tmp_path / "lm.arpa", case.path)


needs_lmplz = pytest.mark.skipif(shutil.which("lmplz") is None, reason="lmplz of KenLM is not on the PATH")


@needs_lmplz
@pytest.mark.parametrize("language", ["es", "ru"])
@pytest.mark.parametrize("unit", ["words", "characters"])
@pytest.mark.parametrize("order", [1, 3, MAX_ORDER])
def test_both_estimators_agree_on_whole_corpora(language: Language, unit: str, order: int, tmp_path: Path) -> None:
    text = sentences(language, unit)
    ngram._write_with_lmplz(text, order, tmp_path / "lmplz")
    ngram._write(text, order, tmp_path / "own")
    assert_same_model(tmp_path / "own", tmp_path / "lmplz")
    estimate(text, order, tmp_path / "estimated")
    assert (tmp_path / "estimated").read_bytes() == (tmp_path / "lmplz").read_bytes()


TEXTS = st.lists(st.lists(st.sampled_from("aabc"), max_size=5), min_size=1, max_size=6).filter(any)


@needs_lmplz
@settings(max_examples=20)
@given(TEXTS, st.integers(1, 4))
def test_both_estimators_agree_on_little_text(text: Sentences, order: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ngram._write_with_lmplz(text, order, Path(folder) / "lmplz")
        ngram._write(text, order, Path(folder) / "own")
        assert_same_model(Path(folder) / "own", Path(folder) / "lmplz")


def test_a_model_of_one_word_by_hand(tmp_path: Path) -> None:
    """Counts of `a` and `</s>` are 1 of 2, discounted by 0.5; half is shared by `a`, `</s>` and `<unk>`."""
    ngram._write([["a"]], 1, tmp_path / "lm")
    sizes, grams = read_arpa(tmp_path / "lm")
    assert sizes == [4]
    probabilities = {word: 10**probability for word, (probability, _) in grams.items()}
    assert probabilities == pytest.approx({"a": 1 / 4 + 1 / 6, "</s>": 1 / 4 + 1 / 6, "<unk>": 1 / 6, "<s>": 1})


def test_discounts_are_those_of_chen_and_goodman() -> None:
    """Equation 26 with n1..n4 = 6, 3, 2, 1: Y = 1/2, D1 = 1 - 2Y 3/6, D2 = 2 - 3Y 2/3, D3+ = 3 - 4Y 1/2."""
    assert ngram._discounts({1: 6, 2: 3, 3: 2, 4: 1, 5: 9}) == pytest.approx((0, 0.5, 1, 2))
    assert ngram._discounts({1: 6, 2: 3, 3: 2}) == pytest.approx((0, 0.5, 1, 3))


@pytest.mark.parametrize(
    "counts_of_counts",
    [{}, {2: 3, 3: 2, 4: 1}, {1: 6, 3: 2, 4: 1}, {1: 6, 2: 3, 4: 1}, {1: 6, 2: 3, 3: 9}, {1: 6, 2: 3, 3: 2, 4: 9}],
)
def test_discounts_that_cannot_be_estimated_are_those_of_lmplz(counts_of_counts: dict[int, int]) -> None:
    assert ngram._discounts(counts_of_counts) == (0, 0.5, 1, 1.5)


def test_a_discount_at_the_edge_of_its_range_is_rounded_as_in_lmplz() -> None:
    """D2 = 2 - 3 (1/7) (14/3) is 0 exactly, and below it in single precision."""
    assert ngram._discounts({1: 1, 2: 3, 3: 14}) == (0, 0.5, 1, 1.5)


class KenLMModel:
    """A file as KenLM reads it. Words that it does not have are `<unk>`."""

    def __init__(self, path: Path, words: Sequence[str]) -> None:
        self.model = KenLM(str(path), Dictionary([*words, UNKNOWN]))
        self.index = {word: index for index, word in enumerate([*words, UNKNOWN])}

    def after(self, words: Sequence[str], *, start: bool) -> Any:
        """Its state after the words, at the start of a sentence or somewhere within one."""
        state = self.model.start(not start)
        for word in words:
            state, _ = self.model.score(state, self.index[word])
        return state

    def log10(self, state: Any, word: str) -> float:
        _, value = self.model.finish(state) if word == END else self.model.score(state, self.index[word])
        return float(value)

    def log10_sentence(self, words: Sequence[str]) -> float:
        histories = [self.after(words[:i], start=True) for i in range(len(words) + 1)]
        return math.fsum(self.log10(state, word) for state, word in zip(histories, [*words, END], strict=True))


def probability_sums(model: KenLMModel, words: Sequence[str], order: int) -> Iterator[float]:
    """Over all words after every history of up to order - 1 words, within a sentence and at its start."""
    histories = [h for length in range(order) for h in itertools.product(words, repeat=length)]
    for history, start in itertools.product(histories, (False, True)):
        state = model.after(history, start=start)
        yield math.fsum(10 ** model.log10(state, word) for word in (*words, END))


@settings(max_examples=40)
@given(TEXTS, st.integers(2, 4))
def test_probabilities_sum_to_one_after_every_history(text: Sentences, order: int) -> None:
    """KenLM reads the file, looks up the words and backs off."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lm.arpa"
        ngram._write(text, order, path)
        words = vocabulary(path)
        assert set(words) == {word for sentence in text for word in sentence}
        sums = list(probability_sums(KenLMModel(path, words), [*words, UNKNOWN], order))
    assert sums == pytest.approx([1.0] * len(sums), abs=1e-5)


def test_a_word_that_nothing_else_follows_has_a_weight_that_kenlm_reads(tmp_path: Path) -> None:
    """Counts of counts 2, 2, 4 and 9 of bigrams give D3+ = 3 - 4 (1/3) (9/4) = 0: after `w16`, only `</s>`."""
    times = [1, 1, 2, 2, 3, 3, 3, 3, *[4] * 9]
    ngram._write([[f"w{i}"] for i, count in enumerate(times) for _ in range(count)], 2, tmp_path / "lm.arpa")
    assert read_arpa(tmp_path / "lm.arpa")[1]["w16"][1] == -99
    model = KenLMModel(tmp_path / "lm.arpa", ["w0", "w16"])
    assert model.log10_sentence(["w16", "w16"]) < -99
    assert model.log10_sentence(["w16"]) > -3
    assert max(probability_sums(model, ["w0", "w16", UNKNOWN], 2)) <= 1


@pytest.mark.parametrize("order", [0, -1, MAX_ORDER + 1])
def test_other_orders_are_refused(order: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"order {order}: must be from 1 to 6 .*choose"):
        estimate([["a"]], order, tmp_path / "lm.arpa")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([], "no sentences with words, got 0 words.*give at least one"),
        ([[], []], "no sentences with words"),
        ([["a"], ["b", "<s>"]], "'<s>' is reserved.*leave it out"),
        ([["</s>"]], "'</s>' is reserved"),
        ([["<unk>"]], "'<unk>' is reserved"),
        ([["<UNK>"]], "'<UNK>' is reserved"),
        ([["a", ""]], "word '': .*not empty.*split"),
        ([list("a b")], "word ' ': .*no white space.*write a space as another character"),
        ([["a\tb"]], "no white space"),
        ([["a\nb"]], "no white space"),
        ([["a\u00a0b"]], "no white space"),
        ([["a\0"]], "no white space"),
    ],
)
@pytest.mark.parametrize("lmplz", [True, False])
def test_text_without_words_or_with_bad_words_is_refused_and_nothing_is_written(
    text: Sentences, message: str, lmplz: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not lmplz:
        monkeypatch.setenv("PATH", "")
    path = tmp_path / "lm.arpa"
    path.write_text("a model of before")
    with pytest.raises(ValueError, match=message):
        estimate(text, 2, path)
    assert [file.name for file in tmp_path.iterdir()] == ["lm.arpa"]
    assert path.read_text() == "a model of before"


@pytest.mark.usefixtures("without_lmplz")
def test_a_model_replaces_the_one_of_before_and_its_folder_is_made(tmp_path: Path) -> None:
    """At once: who reads the old one goes on reading it."""
    path = tmp_path / "new" / "lm.arpa"
    estimate((["a"] for _ in range(2)), 2, path)
    with path.open() as reader:
        estimate((["b"] for _ in range(2)), 2, path)
        assert "\ta\t" in reader.read()
    assert vocabulary(path) == ["b"]
    assert [file.name for file in path.parent.iterdir()] == ["lm.arpa"]


def test_lmplz_on_the_path_is_used_and_its_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "lmplz"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho no memory >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    with pytest.raises(RuntimeError, match=r"lmplz -o 2 --discount_fallback .*ended with code 3: no memory"):
        estimate([["a"]], 2, tmp_path / "models" / "lm.arpa")
    assert list((tmp_path / "models").iterdir()) == []


def as_plain(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def as_gzip(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content))


# Line ends of Windows, an unknown word in capitals, white space of other scripts inside a word.
OTHER_TOOLS = r"""\data\
ngram 1=5
ngram 2=1

\1-grams:
-1	<UNK>
-99	<s>	-0.3
-1	</s>
-1	ñu	-0.2
-1	b\u3000c

\2-grams:
-1	ñu ñu

\end\
""".replace("\n", "\r\n").replace(r"\u3000", "\u3000")


@pytest.mark.parametrize("write", [as_plain, as_gzip])
def test_the_vocabulary_of_an_arpa_file(write: Callable[[Path, bytes], None], tmp_path: Path) -> None:
    for case in CASES:
        write(tmp_path / "lm", case.path.read_bytes())
        expected: Iterable[str] = itertools.chain(*sentences(case.language, case.unit, case.utterances))
        assert vocabulary(tmp_path / "lm") == list(dict.fromkeys(expected))
    write(tmp_path / "lm", OTHER_TOOLS.encode())
    assert vocabulary(tmp_path / "lm") == ["ñu", "b\u3000c"]


def test_a_kenlm_binary_does_not_tell_its_words(tmp_path: Path) -> None:
    (tmp_path / "lm.bin").write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(range(256)))
    with pytest.raises(ValueError, match=r"lm\.bin: a KenLM binary does not tell its words; name a lexicon"):
        vocabulary(tmp_path / "lm.bin")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"words\n",
        b"\\data\\\n\n\\1-grams:\n",
        b"\x1f\x8bnot gzip",
        gzip.compress(b"\\data\\\n" * 99, mtime=0)[:-9],
        b"\xff",
    ],
)
def test_other_files_are_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_bytes(content)
    with pytest.raises(ValueError, match=r"lm\.arpa: .*ARPA file.*\.gz"):
        vocabulary(tmp_path / "lm.arpa")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.arpa: cannot be read as an ARPA file"):
        vocabulary(tmp_path / "missing.arpa")
