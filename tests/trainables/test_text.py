from __future__ import annotations

import unicodedata
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.data.config import Language, PromptsConfig
from trainables.data.corpus import read_corpus
from trainables.data.text import BLANK, Characters, normalise

ALPHABET = "abcñé з'"
CHARACTERS = Characters([ALPHABET])


@given(st.text(ALPHABET))
def test_decode_undoes_encode(text: str) -> None:
    assert CHARACTERS.decode(CHARACTERS.encode(text)) == text


@given(st.text(ALPHABET), st.text("xyz!ß"))
def test_characters_outside_the_vocabulary_are_dropped(known: str, unknown: str) -> None:
    mixed = "".join(a + b for a, b in zip(known.ljust(len(unknown)), unknown.ljust(len(known)), strict=True))
    assert CHARACTERS.decode(CHARACTERS.encode(mixed)) == "".join(c for c in mixed if c in ALPHABET)


@given(st.text(ALPHABET), st.integers(0, 50))
def test_blank_is_index_0_is_never_encoded_and_decodes_to_nothing(text: str, position: int) -> None:
    indices = CHARACTERS.encode(text)
    assert BLANK == 0
    assert BLANK not in indices
    assert CHARACTERS.decode([*indices[:position], BLANK, *indices[position:]]) == text


@given(st.lists(st.text(ALPHABET), min_size=1))
def test_indices_depend_on_the_set_of_characters_alone(texts: list[str]) -> None:
    vocabulary = Characters(texts)
    assert vocabulary.symbols == Characters(["".join(reversed(texts))] * 2).symbols
    assert len(vocabulary) == 1 + len(set("".join(texts)))
    assert sorted(vocabulary.encode("".join(vocabulary.symbols[1:]))) == list(range(1, len(vocabulary)))


@pytest.mark.parametrize("language", get_args(Language))
def test_train_transcripts_survive_the_vocabulary(language: Language) -> None:
    corpus = read_corpus(PromptsConfig(language=language))
    characters = Characters(u.text or "" for u in corpus.train)
    assert all(characters.decode(characters.encode(u.text or "")) == u.text for u in corpus.train)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Agente  Conectado ", "agente conectado"),
        ("n\u0303", "\u00f1"),
        ("N\u0303", "\u00f1"),
        ("a\u00a0b\tc\nd", "a b c d"),
        ("ЁЛКА", "ёлка"),
        ("J\u030c", "\u01f0"),  # the capital has no composed form, the small letter has
        ("", ""),
    ],
)
def test_normalise_composes_lowers_and_joins_by_single_spaces(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(st.text())
def test_normalise_is_idempotent_and_its_result_is_nfc(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)


@given(st.text("aé ñ"))
def test_composed_and_decomposed_text_normalise_alike(text: str) -> None:
    assert normalise(unicodedata.normalize("NFD", text)) == normalise(text)
