"""Decoding with an n-gram language model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from trainables.config import Config, cosmetic
from trainables.data.config import below_corpora


class LanguageModelConfig(Config):
    """CTC beam search with an n-gram, in flashlight-text. Defaults are P-SEW's (tools/eval_w2v.py, infer.py).

    The score of a text is its best path's natural log-probability + weight x decimal log-probability of the language
    model, end of the sentence included + word_score for each word.
    """

    # The content of the files is part of a stage's identity, their place on disk is not.
    path: Path | None = cosmetic(
        None,
        description="ARPA file, plain or .gz, or KenLM binary; a relative path starts at $CORPORA, if that is set. "
        "None: an n-gram of the labelled train transcripts.",
    )
    order: int = Field(3, ge=2, le=6, description="Of the n-gram that is made of the train transcripts.")
    unit: Literal["words", "symbols"] = Field(
        "words",
        description="What the language model predicts. symbols: what the recogniser writes, a space written |; the "
        "search then needs no lexicon, and may write words that nobody has seen.",
    )
    lexicon: Path | None = cosmetic(
        None, description="Words, the first of each line. None: those of the ARPA file, or of the train transcripts."
    )
    weight: float = Field(2.0, ge=0, description="Of the language model.")
    word_score: float = Field(-1.0, description="Added for each word; without effect for unit: symbols.")
    beam: int = Field(50, ge=1, description="Hypotheses kept at each frame.")
    beam_threshold: float = Field(25.0, gt=0, description="Hypotheses that are worse by more are dropped.")
    beam_symbols: int = Field(100, ge=1, description="Likeliest symbols that are tried at each frame.")

    @field_validator("path", "lexicon")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return below_corpora(path) if path else None

    @model_validator(mode="after")
    def _lexicon_of_words(self) -> Self:
        if self.lexicon and self.unit == "symbols":
            raise ValueError("unit: symbols needs no lexicon; leave one of the two out")
        return self
