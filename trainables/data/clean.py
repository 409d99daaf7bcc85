"""From transcripts as published to what a recogniser is to write. Markers of noises are the readers' to remove.

Rules go by Unicode's categories and scripts. In all languages: compatibility forms (full-width letters, Arabic
presentation forms, ligatures) become plain ones (NFKC); lower case; letters, combining marks and numbers stay, and
apostrophes between them, typographic ones as '; all else separates words, so hyphens and dandas become spaces. What
cannot be seen (format characters, variation selectors) goes.

Arabic script: short vowels and other signs above and below (tashkeel, the superscript alef, Quranic marks) and tatweel
go; hamza and madda stay, and no letter becomes another.

Han: no space between two Han characters, one between a Han character and a Latin letter or a digit.

Indic scripts: the invisible joiners ZWJ and ZWNJ go; Bengali's old spelling of khanda ta with one becomes the letter ৎ.
Nukta is a sign of its own after its letter, as in NFC (ड़ is two characters; ऩ, ऱ and ऴ, not letters of Hindi, are one).

Mongolian (`mn`): a word of Cyrillic letters and of Latin, Greek or other Cyrillic look-alikes is written with
Mongolian Cyrillic letters; see `LOOK_ALIKES`. A word that also has other letters stays as it is.

Turkish and Azerbaijani (`tr`, `az`): I and İ become ı and i.
"""
# ruff: noqa: RUF001 (letters that look alike are its subject)

from __future__ import annotations

import re
import unicodedata

TATWEEL = "\u0640"
HAMZA_AND_MADDA = "\u0653\u0654\u0655"
KHANDA_TA = ("\u09a4\u09cd\u200d", "\u09ce")  # ta, virama, ZWJ: how it was written before Unicode 4.1

# Latin and Greek letters that look like Cyrillic ones. Capital Y looks like Ү, small y like у. Then letters that stand
# for ө and ү in texts from keyboards and code pages without them: Latin ɵ, Greek θ, Cyrillic ѳ and є; ї and Greek Υ.
LOOK_ALIKES = str.maketrans(
    "AaBCcEeHKkMOoPpTXxYyΑαΒΕΗΚκΜΟοΡρΤΧχƟɵΘθѲѳЄєЇїΥ",
    "АаВСсЕеНКкМОоРрТХхҮуАаВЕНКкМОоРрТХхӨөӨөӨөӨөҮүҮ",
)

_HAN = "\u2e80-\u2fdf\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LATIN = "0-9A-Za-z\u00aa-\u02af\u1e00-\u1eff\u2c60-\u2c7f\ua720-\ua7ff\uab30-\uab6f"
_LATIN_MARKS = "\u0300-\u036f"
_SPACE_IN_HAN = re.compile(f"(?<=[{_HAN}]) +(?=[{_HAN}])")
_HAN_BESIDE_LATIN = re.compile(f"(?<=[{_HAN}])(?=[{_LATIN}])|(?<=[{_LATIN}{_LATIN_MARKS}])(?=[{_HAN}])")
_OUTER_APOSTROPHE = re.compile("(?<![^ '])'|'(?![^ '])")


def clean(text: str, language: str) -> str:
    """The text in the characters that a recogniser writes, words separated by single spaces; may be empty.

    `language` is an ISO 639-1 code; one without rules of its own gets the common ones. Never raises, and cleaning
    what is clean changes nothing.
    """
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES).replace(*KHANDA_TA)).translate(_APOSTROPHES)
    text = _OUTER_APOSTROPHE.sub(" ", _without_stray_marks(text.translate(_PLAIN)))
    text = _HAN_BESIDE_LATIN.sub(" ", _SPACE_IN_HAN.sub("", text))
    if language == "mn":
        text = " ".join(map(_in_cyrillic, text.split()))
    if language in ("tr", "az"):
        text = text.replace("I", "ı").replace("İ", "i")
    return " ".join(unicodedata.normalize("NFKC", text.lower()).split())


class _Plain(dict[int, str]):
    """What each character becomes, found when it is first met."""

    def __missing__(self, code: int) -> str:
        self[code] = _plain(chr(code))
        return self[code]


def _plain(character: str) -> str:
    """The character, nothing, or a space where it separates words. Apostrophes are looked at later."""
    category = unicodedata.category(character)
    name = unicodedata.name(character, "")
    if character == "'":
        return character
    if character == TATWEEL or (category == "Mn" and name.startswith("ARABIC") and character not in HAMZA_AND_MADDA):
        return ""
    invisible = name.startswith("VARIATION SELECTOR") or name == "COMBINING GRAPHEME JOINER"
    if invisible or category == "Me" or (category == "Cf" and name != "ZERO WIDTH SPACE"):
        return ""
    return character if category[0] in "LMN" else " "


_PLAIN = _Plain()
_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u201b\u02bc\u02bb\u2032`\u00b4"), "'")


def _without_stray_marks(text: str) -> str:
    """Without combining marks that have no letter to stand on."""
    kept: list[str] = []
    for character in text:
        if unicodedata.category(character)[0] != "M" or (kept and kept[-1] not in " '"):
            kept.append(character)
    return "".join(kept)


def _in_cyrillic(word: str) -> str:
    letters = [character for character in word if character.isalpha()]
    foreign = [letter for letter in letters if not "\u0400" <= letter <= "\u052f"]
    mixed = len(foreign) < len(letters) and all(ord(letter) in LOOK_ALIKES for letter in foreign)
    return word.translate(LOOK_ALIKES) if mixed else word
