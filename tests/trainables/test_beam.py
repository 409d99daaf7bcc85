"""The beam search against enumeration of all paths, and on log-probabilities whose text is certain."""

from __future__ import annotations

import itertools
import math
import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainables.test_ngram import Arpa, read_arpa
from trainables.data.config import Language, PromptsConfig
from trainables.data.corpus import read_corpus
from trainables.data.pieces import Pieces
from trainables.data.text import BLANK, Characters, Letters
from trainables.decoding.beam import BeamSearch, symbol_names
from trainables.decoding.config import LanguageModelConfig
from trainables.decoding.greedy import greedy_decode
from trainables.decoding.ngram import estimate, vocabulary

NOTHING_PRUNED: dict[str, Any] = {"beam": 20_000, "beam_threshold": 1e6}
IMPOSSIBLE = -1e4  # log-probability of symbols that a brute force leaves out
Texts = dict[str, float]  # with their scores


def decoded(search: BeamSearch, scores: Sequence[Tensor], processes: int = 1) -> list[str]:
    with search.open(processes) as decode:
        return decode(scores)


def search_of(path: Path, symbols: Characters, words: Sequence[str] = (), **config: object) -> BeamSearch:
    if config.get("unit") == "symbols":  # which knows no words to score
        config.pop("word_score", None)
    return BeamSearch.make(LanguageModelConfig.model_validate({"path": path, **config}), path, symbols, words)


def log10_probability(grams: Arpa, order: int, units: Sequence[str]) -> float:
    """Of the units as a sentence, its end included, by the definition of an ARPA file."""
    padded = ["<s>", *units, "</s>"]
    return math.fsum(_backed_off(grams, padded[max(0, i + 1 - order) : i + 1]) for i in range(1, len(padded)))


def _backed_off(grams: Arpa, gram: Sequence[str]) -> float:
    if len(gram) == 1:
        return grams.get(gram[0], grams["<unk>"])[0]
    if (found := grams.get(" ".join(gram))) is not None:
        return found[0]
    return grams.get(" ".join(gram[:-1]), (0.0, 0.0))[1] + _backed_off(grams, gram[1:])


def random_scores(seed: int, frames: int, symbols: Characters, possible: Sequence[int]) -> Tensor:
    """(T, V) log-probabilities of these symbols; the others are impossible."""
    scores_TV = torch.full((frames, len(symbols)), IMPOSSIBLE)
    logits = 2 * torch.randn(frames, len(possible), generator=torch.Generator().manual_seed(seed))
    scores_TV[:, list(possible)] = logits.log_softmax(1)
    return scores_TV


def paths(scores_TV: Tensor, possible: Sequence[int]) -> Iterator[tuple[list[int], float]]:
    """Every sequence of symbols, repeats merged, with the log-probability of its path; the same one may come again."""
    rows = scores_TV.tolist()
    for path in itertools.product(possible, repeat=len(rows)):
        yield [index for index, _ in itertools.groupby(path)], sum(r[i] for r, i in zip(rows, path, strict=True))


def words_brute_force(
    scores_TV: Tensor,
    symbols: Characters,
    possible: Sequence[int],
    words: Sequence[str],
    of_text: Callable[[str], float],
) -> Texts:
    """text -> log-probability of its best path, and what the language model says."""
    best: Texts = {}
    for indices, score in paths(scores_TV, possible):
        text = " ".join(symbols.decode(indices).split())
        if set(text.split()) <= set(words):
            best[text] = max(best.get(text, -math.inf), score)
    return {text: score + of_text(text) for text, score in best.items()}


LATIN = Characters(["ab ba"])
HAN = Characters(["你 好"])
LETTERS = Letters()
PROBLEMS: dict[str, tuple[Characters, str, list[list[str]], int]] = {  # alphabet, possible symbols, sentences, order
    "one word": (LATIN, " ab", [["a"]], 2),
    "bigrams": (LATIN, " ab", [["a", "ab"], ["ab", "ba", "a"], ["b", "a"], ["a", "a"]], 2),
    "trigrams": (LATIN, " ab", [["a", "b", "a"], ["a", "b", "aa"], ["b", "aa", "b"], ["aa"], ["a"]], 3),
    "Han": (HAN, " 你好", [["你", "好"], ["你好"], ["好", "好", "你"]], 2),
    "letters": (LETTERS, " ao", [["a", "o"], ["oa", "a"], ["a"]], 2),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@settings(max_examples=12)
@given(st.integers(0, 2**31), st.integers(2, 5), st.floats(0, 4), st.floats(-2, 2))
def test_the_text_over_words_is_the_best_of_all(
    problem: str, tmp_path_factory: pytest.TempPathFactory, seed: int, frames: int, weight: float, word_score: float
) -> None:
    """Log-probability of the best path + weight x log10 of the language model, `</s>` included + score a word."""
    symbols, letters, sentences, order = PROBLEMS[problem]
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    estimate(sentences, order, path)
    grams, words = read_arpa(path)[1], vocabulary(path)
    possible = [BLANK, *(symbols.symbols.index(letter) for letter in letters)]
    scores_TV = random_scores(seed, frames, symbols, possible)

    def of_text(text: str) -> float:
        return weight * log10_probability(grams, order, text.split()) + word_score * len(text.split())

    scores = words_brute_force(scores_TV, symbols, possible, words, of_text)
    search = search_of(path, symbols, words, weight=weight, word_score=word_score, **NOTHING_PRUNED)
    (found,) = decoded(search, [scores_TV])
    assert scores[found] == pytest.approx(max(scores.values()), abs=2e-3), (found, scores)


@pytest.mark.parametrize("order", [2, 3])
@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(2, 5), st.floats(0, 4))
def test_the_text_over_symbols_is_the_best_of_all(
    order: int, tmp_path_factory: pytest.TempPathFactory, seed: int, frames: int, weight: float
) -> None:
    """As over words; but a boundary in the first frame is no symbol of the text."""
    names = symbol_names(LATIN.symbols)
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    estimate([[names[i] for i in LATIN.encode(text)] for text in ("ab ba", "a b", "aab", "ba ba")], order, path)
    grams, possible = read_arpa(path)[1], range(len(LATIN))
    scores_TV = random_scores(seed, frames, LATIN, possible)
    best: dict[tuple[int, ...], float] = {}
    for indices, score in paths(scores_TV, possible):
        text = tuple(i for i in indices[indices[0] == LATIN.boundary :] if i != BLANK)
        best[text] = max(best.get(text, -math.inf), score)
    scores: Texts = {}
    for text, score in best.items():
        total = score + weight * log10_probability(grams, order, [names[i] for i in text])
        written = LATIN.decode(text).strip()
        scores[written] = max(scores.get(written, -math.inf), total)
    search = search_of(path, LATIN, unit="symbols", weight=weight, **NOTHING_PRUNED)
    (found,) = decoded(search, [scores_TV])
    assert scores[found] == pytest.approx(max(scores.values()), abs=2e-3), (found, scores)


def transcripts(language: Language, count: int) -> list[str]:
    return [u.text or "" for u in read_corpus(PromptsConfig(language=language)).train[:count]]


TEXTS = {"characters": transcripts("es", 60), "letters": transcripts("en", 60), "pieces": transcripts("es", 60)}
SYMBOLS: dict[str, Characters] = {
    "characters": Characters(TEXTS["characters"]),
    "letters": LETTERS,
    "pieces": Pieces(TEXTS["pieces"], 60),
}


def certain_scores(indices: Sequence[int], lengths: Sequence[int], num_symbols: int) -> Tensor:
    """(T, V) log-probabilities of a path: each symbol as many frames as given, then a blank. Each is sure to 1e-3."""
    path = [i for index, length in zip(indices, lengths, strict=False) for i in (*[index] * length, BLANK)]
    probabilities_TV = torch.full((len(path) + 1, num_symbols), 1e-3 / (num_symbols - 1))
    probabilities_TV[torch.arange(len(path) + 1), torch.tensor([BLANK, *path])] = 1 - 1e-3
    return probabilities_TV.log()


@pytest.fixture(scope="module")
def language_models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    folder = tmp_path_factory.mktemp("language-models")
    found = {}
    for outputs, texts in TEXTS.items():
        names = symbol_names(SYMBOLS[outputs].symbols)
        found[outputs, "words"] = folder / f"{outputs}-words.arpa"
        found[outputs, "symbols"] = folder / f"{outputs}-symbols.arpa"
        estimate([text.split() for text in texts], 3, found[outputs, "words"])
        written = [[names[i] for i in SYMBOLS[outputs].encode(text)] for text in texts]
        estimate(written, 3, found[outputs, "symbols"])
    return found


@pytest.mark.parametrize("outputs", SYMBOLS)
@pytest.mark.parametrize("unit", ["words", "symbols"])
@settings(max_examples=10)
@given(st.integers(0, 59), st.integers(0, 2**31))
def test_a_certain_text_is_found_whatever_the_lengths_of_its_symbols(
    outputs: str,
    unit: str,
    language_models: dict[tuple[str, str], Path],
    number: int,
    seed: int,
) -> None:
    """With the weight 0 it is the greedy text; real transcripts."""
    text, symbols = TEXTS[outputs][number], SYMBOLS[outputs]
    path = language_models[outputs, unit]
    words = vocabulary(path) if unit == "words" else ()
    lengths = random.Random(seed).choices([1, 2, 3], k=len(text))
    scores_TV = certain_scores(symbols.encode(text), lengths, len(symbols))
    greedy = greedy_decode(scores_TV[None], torch.tensor([len(scores_TV)]), symbols)
    for weight in (0, 0.1):
        search = search_of(path, symbols, words, unit=unit, weight=weight, word_score=0)
        assert decoded(search, [scores_TV]) == greedy == [text]


def test_pieces_of_one_frame_are_words(language_models: dict[tuple[str, str], Path]) -> None:
    symbols, path = SYMBOLS["pieces"], language_models["pieces", "words"]
    search = search_of(path, symbols, vocabulary(path))
    assert search.boundary is None
    scores = [certain_scores(symbols.encode(text), [1] * 400, len(symbols)) for text in TEXTS["pieces"]]
    assert decoded(search, scores) == TEXTS["pieces"]


def test_han_words_without_any_space(tmp_path: Path) -> None:
    """Transcripts of one word each: the recogniser has no boundary."""
    symbols = Characters(["你好", "好"])
    assert symbols.boundary is None
    estimate([["你好"], ["好"], ["你好", "好"]], 2, tmp_path / "lm.arpa")
    search = search_of(tmp_path / "lm.arpa", symbols, ["你好", "好"], weight=0.1, word_score=0)
    for lengths in itertools.product([1, 2, 3], repeat=3):
        assert decoded(search, [certain_scores(symbols.encode("你好好"), lengths, 3)]) == ["你好 好"]


@pytest.mark.parametrize("unit", ["words", "symbols"])
def test_several_processes_write_what_one_writes(tmp_path: Path, unit: str) -> None:
    texts = TEXTS["characters"]
    symbols, names = SYMBOLS["characters"], symbol_names(SYMBOLS["characters"].symbols)
    units = [t.split() if unit == "words" else [names[i] for i in symbols.encode(t)] for t in texts]
    estimate(units, 3, tmp_path / "lm.arpa")
    words = vocabulary(tmp_path / "lm.arpa") if unit == "words" else ()
    search = search_of(tmp_path / "lm.arpa", symbols, words, unit=unit, beam=5)
    scores = [random_scores(i, 10 + i, symbols, range(len(symbols))) for i in range(20)]
    alone = decoded(search, scores)
    assert len(set(alone)) > 10
    assert decoded(search, scores, processes=2) == alone


def test_nothing_to_decode_is_nothing(tmp_path: Path) -> None:
    estimate([["a"]], 2, tmp_path / "lm.arpa")
    assert decoded(search_of(tmp_path / "lm.arpa", LATIN, ["a"]), []) == []


class TestLexicon:
    @pytest.fixture
    def arpa(self, tmp_path: Path) -> Path:
        estimate([["AB", "BA", "BÉ"], ["AB"]], 2, tmp_path / "lm.arpa")
        return tmp_path / "lm.arpa"

    def test_a_language_model_in_capitals_gives_small_letters(self, arpa: Path) -> None:
        """As LibriSpeech's."""
        search = search_of(arpa, LATIN, vocabulary(arpa), weight=0.5)
        assert [word for word, _ in search.spellings] == ["AB", "BA"]
        assert decoded(search, [certain_scores(LATIN.encode("ab ba ab"), [1] * 8, len(LATIN))]) == ["ab ba ab"]

    def test_capitals_are_looked_up_as_they_are(self, tmp_path: Path) -> None:
        """`BA` after `AB` outweighs what the recogniser prefers; `ba`, like `ab`, would be an unknown word."""
        estimate([["AB", "BA"]], 2, tmp_path / "pair.arpa")
        certain_TV = certain_scores(LATIN.encode("ab ba"), [1] * 5, len(LATIN))
        other_TV = certain_scores(LATIN.encode("ab ab"), [1] * 5, len(LATIN))
        doubtful_TV = torch.logaddexp(certain_TV + math.log(0.45), other_TV + math.log(0.55))
        searches = [search_of(tmp_path / "pair.arpa", LATIN, ["AB", "BA"], weight=w, word_score=0) for w in (0, 3)]
        chosen = [decoded(search, [doubtful_TV]) for search in searches]
        assert chosen == [["ab ab"], ["ab ba"]]

    def test_words_that_the_recogniser_cannot_write_are_left_out(self, arpa: Path) -> None:
        search = search_of(arpa, LATIN, ["ab", "abc", "é", "ba", "ab"])
        assert dict(search.spellings) == {"ab": tuple(LATIN.encode("ab")), "ba": tuple(LATIN.encode("ba"))}
        assert dict(search_of(arpa, LETTERS, ["it's", "naïve"]).spellings) == {
            "it's": tuple(LETTERS.encode("it's"))[:-1]
        }

    def test_decomposed_letters_are_spelled_as_transcripts_have_them(self, arpa: Path) -> None:
        symbols = Characters(["canción está"])
        composed = "canción"
        decomposed = unicodedata.normalize("NFD", composed)
        assert decomposed != composed
        ((_, spelling),) = search_of(arpa, symbols, [composed]).spellings
        assert search_of(arpa, symbols, [decomposed]).spellings == ((decomposed, spelling),)

    def test_none_left_is_refused(self, arpa: Path) -> None:
        with pytest.raises(ValueError, match=r"no word that the recogniser can write; give one in its alphabet"):
            search_of(arpa, LATIN, ["xyz", "é"])
        with pytest.raises(ValueError, match="no word"):
            search_of(arpa, LATIN)

    def test_a_word_that_the_language_model_lacks_can_be_written(self, arpa: Path) -> None:
        search = search_of(arpa, LATIN, ["ab", "bb"], weight=0.5)
        assert decoded(search, [certain_scores(LATIN.encode("ab bb"), [1] * 5, len(LATIN))]) == ["ab bb"]


def test_names_of_symbols_hold_no_space() -> None:
    assert symbol_names(("<blank>", "a", " ", " b", "")) == ["<blank>", "a", "|", "|b", "<unused4>"]
