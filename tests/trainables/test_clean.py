# ruff: noqa: RUF001 (letters that look alike are what is tested)
from __future__ import annotations

import csv
import subprocess
import sys
import unicodedata
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trainables.data.clean import clean
from trainables.data.corpus import PROMPTS
from trainables.data.text import normalise

LANGUAGES = ("en", "es", "fr", "nl", "ru", "mn", "zh", "ar", "hi", "bn", "tr", "xx", "")
TRICKY = (
    "aA'’`´-_ .,!?'\u0301\u0307\u0308xyzoOcCpPHhYyrz0123\u00ad\u200b\u200c\u200d\ufe0f\u034f\u20dd"
    "оОөҮүєЄїθΥϴİıIſßﬁ½²①ＡＢ，。"
    "好中々〇。ー한가\u1100\u1161アｱ\u3000"
    "\u0627\u0644\u0640\u064b\u064e\u0651\u0653\u0654\u0670ﻻﷺ\u0660"
    "\u0915\u093c\u0958\u093f\u094d\u0964\u09a4\u09cd\u09ce\u09dc\u09be\ud800\x00\n\t"
)
anything = st.text(st.one_of(st.characters(), st.sampled_from(TRICKY)))
languages = st.sampled_from(LANGUAGES)


@given(anything, languages)
@example("z''оx", "mn")
@example("оx好z", "mn")
@example("a'\u0301'b", "en")
@example("\u0627\u064e\u0653", "ar")
@example("a\u200d\u0301", "en")
@example("is \u0149 man", "af")
def test_what_is_clean_is_not_changed(text: str, language: str) -> None:
    cleaned = clean(text, language)
    assert clean(cleaned, language) == cleaned


@given(anything, languages)
def test_letters_marks_numbers_inner_apostrophes_and_single_spaces_are_left(text: str, language: str) -> None:
    cleaned = clean(text, language)
    assert cleaned == " ".join(cleaned.split(" ")).strip()
    assert all(c in " '" or unicodedata.category(c)[0] in "LMN" for c in cleaned)
    assert cleaned == normalise(cleaned)  # lower case and NFC, as corpora are read
    for word in cleaned.split(" "):
        assert "''" not in word
        assert not word.startswith("'")
        assert not word.endswith("'")


@given(anything, st.sampled_from([language for language in LANGUAGES if language not in ("mn", "tr")]))
def test_no_letter_and_no_number_is_lost_or_changed(text: str, language: str) -> None:
    def letters(given: str) -> Counter[str]:
        plain = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", given).lower())
        return Counter(c for c in plain if unicodedata.category(c)[0] in "LN" and c != "\u0640")

    apostrophes = dict.fromkeys(map(ord, "\u02bc\u02bb"))  # by category letters
    khanda_ta = text.replace("\u09a4\u09cd\u200d", "\u09ce")
    assert letters(clean(text, language)) == letters(khanda_ta.translate(apostrophes))


@given(anything, anything, languages)
def test_what_is_said_one_after_the_other_is_cleaned_one_after_the_other(one: str, other: str, language: str) -> None:
    assert clean(f"{one} {other}", language) == clean(f"{clean(one, language)} {clean(other, language)}", language)


@given(st.text(st.characters(codec="utf-8")), languages)
def test_canonically_equal_texts_become_equal(text: str, language: str) -> None:
    """Composed and decomposed; the order of the old khanda ta's parts is not touched by either."""
    assert clean(unicodedata.normalize("NFD", text), language) == clean(unicodedata.normalize("NFC", text), language)


@pytest.mark.parametrize("language", ["en", "es", "fr", "it", "ru"])
def test_prompts_as_published_become_their_texts(language: str) -> None:
    """Another normalisation wrote the column `text`. It leaves asides out, in brackets, and keeps outer apostrophes."""
    with (PROMPTS / language / "manifest.tsv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    plain = [row for row in rows if row["has_digits"] == "0" and not set("([") & set(row["raw_text"])]
    assert len(plain) > 400
    for row in plain:
        words = (word.strip("'") for word in row["text"].split())
        assert clean(row["raw_text"], language) == " ".join(words)


@pytest.mark.parametrize(
    ("language", "published", "written"),
    [
        ("en", "Hello, WORLD!  It’s ‘fine’ — well-known.", "hello world it's fine well known"),
        ("en", "rock 'n' roll, the dogs' 'cause o`clock ʼtis", "rock n roll the dogs cause o'clock tis"),
        ("en", "2 + 2 = 4, 50% of $3.20 & a_b", "2 2 4 50 of 3 20 a b"),
        ("en", "ﬁne ＦＵＬＬ　ｗｉｄｔｈ soft\u00adhyphen", "fine full width softhyphen"),
        ("en", "1\ufe0f\u20e3 a\u034fb", "1 ab"),  # the keycap 1, and a joiner of graphemes
        ("en", "\u0301a '\u0301b x\u0323\u0301", "a b x\u0323\u0301"),  # marks without a letter go
        ("fr", "Où est l’été ? Cafe\u0301, ŒUVRE, aujourd'hui", "où est l'été café œuvre aujourd'hui"),
        ("es", "¿Qué? ¡Mañana!", "qué mañana"),
        ("nl", "'s-Hertogenbosch, zo'n reünie", "s hertogenbosch zo'n reünie"),
        ("ru", "Ёлка — по-русски…", "ёлка по русски"),
        ("tr", "IŞIK İstanbul", "ışık istanbul"),
    ],
)
def test_alphabets(language: str, published: str, written: str) -> None:
    assert clean(published, language) == written


@pytest.mark.parametrize(
    ("published", "written"),
    [
        ("السَّلَامُ عَلَيْكُمْ", "السلام عليكم"),
        ("بِسْمِ \u0645\u0653", "بسم \u0645\u0653"),
        ("رحمٰن، العـــربية؟", "رحمن العربية"),
        ("أإآؤئءةى", "أإآؤئءةى"),  # nothing is folded
        ("\u0627\u0653 \u0627\u0654", "آ أ"),
        ("ﻻ ﷲ", "لا الله"),
        ("١٢ و 12", "١٢ و 12"),
    ],
)
def test_arabic(published: str, written: str) -> None:
    assert clean(published, "ar") == unicodedata.normalize("NFC", written)


@pytest.mark.parametrize(
    ("published", "written"),
    [
        ("Монгол хэл, Өнөөдөр Үндэсний.", "монгол хэл өнөөдөр үндэсний"),
        ("MOHГOЛ xэл", "монгол хэл"),  # Latin M, O, H, O, x
        ("Yндсэн yлс cap", "үндсэн улс cap"),  # a word of Latin letters alone is another language's
        ("ɵнɵɵдɵр Ɵдөр θдөр ѳдөр Єдєр їг Їг Υндэс", "өнөөдөр өдөр өдөр өдөр өдөр үг үг үндэс"),
        ("Αав Κино χот ρадио", "аав кино хот радио"),  # Greek letters
        ("PC-ийн DVD-ийн wifiтэй", "pc ийн dvd ийн wifiтэй"),  # letters without a look-alike keep a word as it is
        ("йод \u0438\u0306од", "йод йод"),
    ],
)
def test_mongolian(published: str, written: str) -> None:
    assert clean(published, "mn") == written


def test_look_alikes_of_other_languages_are_left() -> None:
    assert clean("Єдина Україна", "uk") == "єдина україна"
    assert clean("Хoд", "ru") == "хoд"  # Latin o


@pytest.mark.parametrize(
    ("published", "written"),
    [
        ("你 好 吗，我 很好。", "你好吗我很好"),
        ("我想check一下email OK吗", "我想 check 一下 email ok 吗"),
        ("这个 是 Ｍａｃ book，对吧", "这个是 mac book 对吧"),
        ("第3个 iPhone13很好", "第 3 个 iphone13 很好"),
        ("一个café的don’t", "一个 café 的 don't"),
        ("人々〇", "人々〇"),
    ],
)
@pytest.mark.parametrize("language", ["zh", "en"])
def test_han_and_latin(published: str, written: str, language: str) -> None:
    assert clean(published, language) == written


@pytest.mark.parametrize(
    ("language", "published", "written"),
    [
        ("hi", "क्या हाल है। नमस्ते॥", "क्या हाल है नमस्ते"),  # vowel signs and viramas stay
        ("hi", "\u0958\u0932\u092e", "\u0915\u093c\u0932\u092e"),  # precomposed qa
        ("hi", "\u0915\u093c\u0932\u092e", "\u0915\u093c\u0932\u092e"),
        ("hi", "क्\u200dष र\u200cम", "क्ष रम"),
        ("hi", "software को install करें", "software को install करें"),
        ("bn", "\u09a1\u09bc \u09dc", "\u09a1\u09bc \u09a1\u09bc"),
        ("bn", "উত্\u200dস উৎস।", "উৎস উৎস"),
        ("bn", "র\u200d্যাব", "র্যাব"),
    ],
)
def test_indic_scripts(language: str, published: str, written: str) -> None:
    assert clean(published, language) == written


def test_torch_is_not_needed() -> None:
    code = "import sys; from trainables.data.clean import clean; clean('a', 'mn'); print('torch' in sys.modules)"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert fresh.stdout.strip() == "False"
