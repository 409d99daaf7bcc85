# ruff: noqa: RUF001 (scripts look alike)
"""Error rates against textbook edit distances, hand-made alignments and identities."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.data.config import PromptsConfig
from trainables.data.corpus import read_corpus
from trainables.data.phones import pronounce
from trainables.data.scripts import COMMON, mixed_tokens, script_of
from trainables.scoring import (
    Confusion,
    Counts,
    Hypothesis,
    confusions,
    counts,
    error_rates,
    phone_error_rate,
    worst,
)

Pairs = Sequence[tuple[str, str]]


def scored(*pairs: tuple[str, str]) -> list[Hypothesis]:
    return [Hypothesis(f"{i:02}", reference, text) for i, (reference, text) in enumerate(pairs)]


def edit_distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Wagner and Fischer's whole table."""
    table = {(i, 0): i for i in range(len(reference) + 1)} | {(0, j): j for j in range(len(hypothesis) + 1)}
    for i, one in enumerate(reference, 1):
        for j, other in enumerate(hypothesis, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (one != other))
    return table[len(reference), len(hypothesis)]


LATIN = st.lists(st.sampled_from(["a", "ab", "ba", "a'b", "7"]), min_size=1, max_size=5).map(" ".join)
MIXED = st.text(st.sampled_from("我要a'b ж9เก็か"), min_size=1, max_size=10).filter(str.strip)


@pytest.mark.parametrize(
    ("token", "script"),
    [
        ("word", "latin"),
        ("ñandú", "latin"),
        ("слово", "cyrillic"),
        ("λόγος", "greek"),
        ("हिन्दी", "devanagari"),
        ("كَلِمَة", "arabic"),
        ("বাংলা", "bengali"),
        ("ไทย", "thai"),
        ("한국", "hangul"),
        ("漢", "han"),
        ("々", "han"),
        ("〇", "han"),
        ("か", "hiragana"),
        ("カ", "katakana"),
        ("ー", "katakana"),
        ("\uff76", "katakana"),  # half width
        ("\uff21", "latin"),  # full width
        ("ᠮᠣᠩᠭᠣᠯ", "mongolian"),
        ("don't", "latin"),
        ("mp3", "latin"),
        ("3ж", "cyrillic"),
        ("окwi", "cyrillic"),
        ("wiок", "latin"),
        ("окwifi", "latin"),
        ("123", COMMON),
        ("\u0301", COMMON),
        ("!?", COMMON),
        ("\u02bc", COMMON),  # modifier letter apostrophe
        ("", COMMON),
    ],
)
def test_the_script_of_a_token(token: str, script: str) -> None:
    assert script_of(token) == script


def test_every_character_has_a_script_that_can_stand_in_a_metric_name() -> None:
    scripts = {script_of(chr(code)) for code in range(sys.maxunicode + 1)}
    assert all(re.fullmatch("[a-z_]+", script) for script in scripts)
    assert {"latin", "han", "cyrillic", "devanagari", "arabic", COMMON} <= scripts


@given(st.text(max_size=12), st.text(st.characters(categories=["Mn", "Nd", "Po"]), max_size=4))
def test_digits_marks_and_punctuation_take_the_script_of_their_token(token: str, more: str) -> None:
    assert script_of(token + more) == script_of(token)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("  the  word ", ["the", "word"]),
        ("我要 check-in了", ["我", "要", "check-in", "了"]),
        ("iphone15很好", ["iphone15", "很", "好"]),
        ("3月", ["3", "月"]),
        ("ひらカナー漢字", ["ひ", "ら", "カ", "ナ", "ー", "漢", "字"]),
        ("ก็ดีok", ["ก็", "ดี", "ok"]),  # vowels and tones above belong to their consonant
        ("हिन्दी में email", ["हिन्दी", "में", "email"]),
        ("한국 사람", ["한국", "사람"]),
        ("cafe\u0301 \u0301a", ["cafe\u0301", "\u0301a"]),
    ],
)
def test_mixed_tokens(text: str, tokens: list[str]) -> None:
    assert mixed_tokens(text) == tokens


@given(st.text())
def test_mixed_tokens_lose_nothing(text: str) -> None:
    assert "".join(mixed_tokens(text)) == "".join(text.split())


@given(MIXED)
def test_mixed_tokens_are_single_characters_and_words_of_other_letters(text: str) -> None:
    for token in mixed_tokens(text):
        base = [c for c in token if not unicodedata.category(c).startswith("M")]
        assert len(base) == 1 or not set(base) & set("我要เกか")


@given(st.lists(st.tuples(LATIN, LATIN | st.just("")), min_size=1, max_size=5))
def test_one_alphabetic_script_has_word_and_character_error_rates_of_the_corpus(pairs: Pairs) -> None:
    words = sum(edit_distance(r.split(), h.split()) for r, h in pairs) / sum(len(r.split()) for r, _ in pairs)
    characters = sum(edit_distance(r, h) for r, h in pairs) / sum(len(r) for r, _ in pairs)
    assert error_rates(scored(*pairs)) == {"wer": pytest.approx(words), "cer": pytest.approx(characters)}


@given(st.lists(st.tuples(LATIN, LATIN), min_size=1, max_size=5))
def test_mixed_error_rate_of_words_with_spaces_is_the_word_error_rate(pairs: Pairs) -> None:
    """A switched utterance, all right, brings the mixed rates in: of the others they are those of words."""
    rates = error_rates(scored(*pairs, ("a ж", "a ж")))
    assert rates["mer"] == pytest.approx(rates["wer"])
    assert rates["mer_monolingual"] == pytest.approx(error_rates(scored(*pairs))["wer"])
    assert (rates["mer_switched"], rates["pier"], rates["mer_cyrillic"]) == (0, 0, 0)


@given(st.lists(st.tuples(MIXED, MIXED | st.just("")), min_size=1, max_size=5))
def test_rates_over_parts_add_up_to_the_total(pairs: Pairs) -> None:
    pairs = [*pairs, ("我 a ж 9 เ か", "我 a ж 9 เ か")]  # all scripts are in a reference
    rates = error_rates(scored(*pairs))
    tokens = [mixed_tokens(r) for r, _ in pairs]
    errors = sum(edit_distance(t, mixed_tokens(h)) for t, (_, h) in zip(tokens, pairs, strict=True))
    lengths = Counter(script_of(token) for t in tokens for token in t)
    assert rates["mer"] == pytest.approx(errors / lengths.total())
    assert sum(rates[f"mer_{script}"] * n for script, n in lengths.items()) == pytest.approx(errors)
    switched = [
        len(t) for t in tokens if len({"han" if s == "hiragana" else s for s in map(script_of, t)} - {COMMON}) > 1
    ]
    rest = lengths.total() - sum(switched)
    monolingual = rates["mer_monolingual"] * rest if rest else 0
    assert rates["mer_switched"] * sum(switched) + monolingual == pytest.approx(errors)


@given(st.lists(st.tuples(MIXED, MIXED | st.just("")), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_order_and_repetition_of_utterances_change_nothing(pairs: Pairs, random: st.DataObject) -> None:
    hypotheses = scored(*pairs)
    shuffled = sorted(hypotheses, key=lambda h: random.random())  # type: ignore[attr-defined]
    rates = error_rates(hypotheses)
    assert error_rates(shuffled) == rates
    assert error_rates([*hypotheses, *shuffled]) == {name: pytest.approx(rate) for name, rate in rates.items()}
    assert all(re.fullmatch("[a-z_]+", name) for name in rates)
    assert confusions(shuffled, "words") == confusions(hypotheses, "words")
    assert worst(shuffled) == worst(hypotheses)


def test_rates_of_switched_speech_by_hand() -> None:
    """Aligned: 我/我 要/- check/jack in/in 了/了; -/uh 明/明 天/天 meeting/meeting; 好/坏 的/的; the/the end/-."""
    rates = error_rates(
        scored(
            ("我要 check in 了", "我 jack in 了"),
            ("明天 meeting", "uh 明天 meeting"),
            ("好的", "坏的"),
            ("the end", "the"),
        )
    )
    assert rates == pytest.approx(
        {
            "wer": (2 + 1 + 1 + 1) / (4 + 2 + 1 + 2),
            "cer": (4 + 3 + 1 + 4) / (13 + 10 + 2 + 7),
            "mer": (2 + 1 + 1 + 1) / (5 + 3 + 2 + 2),
            "mer_switched": (2 + 1) / (5 + 3),
            "mer_monolingual": (1 + 1) / (2 + 2),
            "mer_han": (1 + 0 + 1) / (3 + 2 + 2),
            "mer_latin": (1 + 1 + 1) / (2 + 1 + 2),
            "pier": 1 / (2 + 1),
        }
    )


@pytest.mark.parametrize(
    ("reference", "hypothesis", "pier"),
    [
        ("да нет check", "да нет check", 0),
        ("да нет check", "да check", 0),  # an error of the script that is not switched
        ("да нет check", "да нет", 1),
        ("да нет check", "да нет jack", 1),
        ("да нет check", "да нет uh check", 1),  # inserted before the switched word
        ("да нет check", "да нет check it", 1),  # after the last word
        ("да check нет", "да check uh нет", 0),  # before another
        ("check да нет", "uh check да нет", 1),
        ("да нет check", "uh да нет check", 0),
        ("да нет check in please", "да нет check in", 0),  # most words are Latin now
        ("да нет check in please", "нет check in please", 1 / 2),
        ("да check", "нет check", 0),  # as many: the first is not switched
        ("да check", "да jack", 1),
        ("да нет 5 check 7", "да нет 6 check 8", 0),  # a number is of no script
        ("5 6 7 8 да нет check", "5 6 7 8 да да check", 0),  # nor most frequent
        ("да нет check", "", 1),
        ("日本のカレー check", "日本のカレー jack", 1),
        ("日本のカレー check", "日木のカレー check", 0),
        ("check in の", "check in", 1),
    ],
)
def test_point_of_interest_error_rate(reference: str, hypothesis: str, pier: float) -> None:
    assert error_rates(scored((reference, hypothesis)))["pier"] == pytest.approx(pier)


def test_insertions_count_to_their_own_script() -> None:
    """Aligned: 我/我 -/uh a/a -/你 b/b -/ж; no reference is Cyrillic, so there is no rate of it."""
    rates = error_rates(scored(("我 a b", "我 uh a 你 b ж")))
    assert (rates["mer"], rates["mer_han"], rates["mer_latin"]) == pytest.approx((3 / 3, 1 / 1, 1 / 2))
    assert "mer_cyrillic" not in rates


@pytest.mark.parametrize(
    ("references", "names"),
    [
        (["one", "two 2"], set()),
        (["один", "два"], set()),
        (["one", "два"], set()),  # no utterance mixes
        (["हिन्दी"], set()),
        (["我们"], {"mer", "mer_monolingual", "mer_han"}),
        (["ไทย"], {"mer", "mer_monolingual", "mer_thai"}),
        (["日本のカレー"], {"mer", "mer_monolingual", "mer_han", "mer_hiragana", "mer_katakana"}),
        (["हिन्दी email"], {"mer", "mer_switched", "mer_devanagari", "mer_latin", "pier"}),
        (
            ["شكرا ok 3", "ok"],
            {"mer", "mer_switched", "mer_monolingual", "mer_arabic", "mer_latin", "mer_common", "pier"},
        ),
    ],
)
def test_which_rates_there_are(references: list[str], names: set[str]) -> None:
    hypotheses = scored(*((reference, reference) for reference in references))
    assert error_rates(hypotheses) == dict.fromkeys({"wer", "cer", *names}, 0)
    wrong = [replace(h, hypothesis="我 ж") for h in hypotheses]
    assert error_rates(wrong).keys() == error_rates(hypotheses).keys()


def test_empty_hypotheses_are_all_deletions() -> None:
    rates = error_rates(scored(("我要 check", ""), ("да ok", "")))
    assert rates == dict.fromkeys(rates, 1)


def test_references_without_words() -> None:
    assert error_rates(scored(("", ""))) == {"wer": 0, "cer": 0}
    assert error_rates(scored(("", "uno dos"))) == {"wer": 2, "cer": 7}
    assert error_rates(scored(("", "uno"), ("uno dos", "uno dos")))["wer"] == 1 / 2
    assert error_rates(scored(("", "uno"), ("我", "我")))["mer"] == 1


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"empty list; error rates need at least one.*split"):
        error_rates([])
    with pytest.raises(ValueError, match="empty list"):
        phone_error_rate([], "es")


@pytest.mark.parametrize("language", ["es", "ru"])
def test_rates_of_real_transcripts_are_those_of_jiwer(language: str) -> None:
    """Each transcript against the next one: many errors of all kinds."""
    texts = [u.text or "" for u in read_corpus(PromptsConfig.model_validate({"language": language})).dev]
    hypotheses = scored(*zip(texts, texts[1:] + texts[:1], strict=True))
    references, others = [h.reference for h in hypotheses], [h.hypothesis for h in hypotheses]
    rates = error_rates(hypotheses)
    assert (rates["wer"], rates["cer"]) == (jiwer.wer(references, others), jiwer.cer(references, others))
    totals = Counts(*(sum(column) for column in zip(*map(counts, hypotheses), strict=True)))
    assert totals.errors / totals.words == pytest.approx(jiwer.wer(references, others))
    assert totals.character_errors / totals.characters == pytest.approx(jiwer.cer(references, others))


@given(LATIN, LATIN | st.just(""))
def test_counts_and_confusions_of_an_utterance_agree_with_the_edit_distance(reference: str, text: str) -> None:
    words, characters = edit_distance(reference.split(), text.split()), edit_distance(reference, text)
    hypothesis = Hypothesis("a", reference, text)
    assert counts(hypothesis) == (words, len(reference.split()), characters, len(reference))
    assert sum(c.count for c in confusions([hypothesis], "words")) == words
    assert sum(c.count for c in confusions([hypothesis], "characters")) == characters


def test_confusions_by_hand() -> None:
    hypotheses = scored(("uno dos tres", "uno tos tres"), ("dos más", "tos más y"), ("tres", ""), ("a b", "ab"))
    assert confusions(hypotheses[:3], "words") == [
        Confusion("dos", "tos", 2),
        Confusion("", "y", 1),
        Confusion("tres", "", 1),
    ]
    assert confusions(hypotheses[3:], "characters") == [Confusion(" ", "", 1)]
    assert confusions(hypotheses[:1], "characters") == [Confusion("d", "t", 1)]
    assert confusions([], "words") == []


def test_the_worst_come_first() -> None:
    """One word of a long utterance is better than two of two; equals by id."""
    good, bad, worse = scored(("uno dos tres cuatro", "uno dos tres quatro"), ("si", ""), ("si no", "y a"))
    assert worst([good, bad, worse]) == [worse, good, bad]
    assert worst([]) == []


def test_phone_error_rate_is_that_of_the_pronunciations() -> None:
    """By hand: 4 and 4 phones, one substituted, one deleted, one inserted."""
    hypotheses = scored(("casa", "k a s o"), ("queso", "k s o o"))
    assert pronounce("queso", "es") == ["k", "e", "s", "o"]
    assert phone_error_rate(hypotheses, "es") == {"per": pytest.approx(3 / 8)}
