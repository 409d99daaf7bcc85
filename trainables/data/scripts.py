"""The scripts that a text is written in, and the tokens of mixed error rates."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

COMMON = "common"  # Unicode's name for what no script owns: digits, punctuation, marks
UNSPACED = frozenset({"han", "hiragana", "katakana", "thai", "lao", "khmer", "myanmar"})
_IDEOGRAPHIC_ZERO = "\u3007"  # written like a letter of Han, but a number to Unicode
_NAMES = {"cjk": "han", "ideographic": "han", "hentaigana": "hiragana", "modifier": COMMON, "": COMMON}


def script_of(token: str) -> str:
    """The script of most of the token's letters, the first one of equals: `latin`, `han`, `cyrillic`, `devanagari`...

    It is the first word of the letters' names in Unicode, lower case, where ideographs are `han`; wide, narrow and
    other compatibility forms count as their letter. Digits, marks and punctuation take the script of their token;
    a token without letters is `common`.
    """
    scripts = Counter(script for script in map(_script_of_character, token) if script != COMMON)
    return max(scripts, key=scripts.__getitem__, default=COMMON)


@lru_cache(maxsize=20_000)
def _script_of_character(character: str) -> str:
    for letter in unicodedata.normalize("NFKC", character):
        if not unicodedata.category(letter).startswith("L") and letter != _IDEOGRAPHIC_ZERO:
            continue
        name = unicodedata.name(letter, "").lower().split(" ")[0].split("-")[0]
        if (script := _NAMES.get(name, name)) != COMMON:
            return script
    return COMMON


def mixed_tokens(text: str) -> list[str]:
    """Tokens of the mixed error rate: each character of a script without spaces, each run of others between spaces.

    The scripts without spaces are Han, Hiragana, Katakana, Thai, Lao, Khmer and Myanmar. A mark belongs to the
    character before it. Punctuation is no boundary: normalise the text before. `"我要 check-in了"` gives
    `["我", "要", "check-in", "了"]`.
    """
    return [token for word in text.split() for token in _split_word(word)]


def _split_word(word: str) -> list[str]:
    tokens: list[str] = []
    in_run = False
    for character in word:
        alone = _script_of_character(character) in UNSPACED
        mark = unicodedata.category(character).startswith("M")
        if tokens and (mark or (in_run and not alone)):
            tokens[-1] += character
        else:
            tokens.append(character)
            in_run = not alone
    return tokens
