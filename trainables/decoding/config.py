"""Decoding with an n-gram language model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from trainables.config import Config, cosmetic
from trainables.data.config import below_corpora

ORDER = 3
WORD_SCORE = -1.0


class LanguageModelConfig(Config):
    """CTC beam search with an n-gram, in flashlight-text. Defaults are P-SEW's (tools/eval_w2v.py, infer.py).

    The score of a text is its best path's natural log-probability + weight x decimal log-probability of the language
    model, end of the sentence included + word_score for each word.
    """

    # The content of the files is part of a stage's identity, their place on disk is not.
    path: Path | None = cosmetic(
        None,
        description="ARPA file, plain or .gz, or KenLM binary, which processes share in memory; a relative path starts "
        "at $CORPORA, if that is set. None: an n-gram of the labelled train transcripts.",
    )
    order: int = Field(ORDER, ge=2, le=6, description="Of the n-gram that is made of the train transcripts.")
    unit: Literal["words", "symbols"] = Field(
        "words",
        description="What the language model predicts. symbols: what the recogniser writes, a space written |; the "
        "search then needs no lexicon, and may write words that nobody has seen.",
    )
    lexicon: Path | None = cosmetic(
        None, description="Words, the first of each line. None: those of the ARPA file, or of the train transcripts."
    )
    weight: float = Field(2.0, ge=0, description="Of the language model.")
    word_score: float = Field(WORD_SCORE, description="Added for each word; without effect for unit: symbols.")
    beam: int = Field(50, ge=1, description="Hypotheses kept at each frame.")
    beam_threshold: float = Field(25.0, gt=0, description="Hypotheses that are worse by more are dropped.")
    beam_symbols: int = Field(100, ge=1, description="Likeliest symbols that are tried at each frame.")

    @field_validator("path", "lexicon")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return below_corpora(path) if path else None

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.unit == "symbols" and (self.lexicon or self.word_score != WORD_SCORE):
            raise ValueError("unit: symbols knows no words; leave lexicon and word_score out")
        if self.path and self.order != ORDER:
            raise ValueError("order is that of an n-gram of the train transcripts; leave it or path out")
        return self
