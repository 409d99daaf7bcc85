"""Which speech a stage reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from trainables.config import Config, cosmetic, default_kind

SAMPLE_RATE_HZ = 16_000
CORPORA_VARIABLE = "CORPORA"  # environment variable: the folder that relative roots start from


def below_corpora(path: Path) -> Path:
    """The path made absolute, for workers have other working directories and variables.

    A relative one starts at $CORPORA, if that is set. Raises ValueError for `~` of an unknown user.
    """
    try:
        return (Path(os.environ.get(CORPORA_VARIABLE, "")) / path.expanduser()).absolute()
    except RuntimeError as error:
        raise ValueError(str(error)) from error


Language = Literal["en", "es", "fr", "it", "ru"]


class _Subsets(Config):
    """How much of a corpus is used.

    Subsets are nested, what is in a smaller one is in every larger one, and balanced: the speakers that the manifest
    names have equal shares as long as each has speech left.
    """

    labelled_minutes: float | None = Field(
        None, gt=0, description="Labelled budget: at most so much labelled train speech. Dev and test stay whole."
    )
    unlabelled_hours: float | None = Field(None, gt=0, description="At most so much unlabelled speech.")
    unlabelled_fraction: float = Field(1.0, gt=0, le=1, description="Share of the unlabelled speech, by duration.")
    subset_seed: int = Field(0, ge=0, description="Which utterances the subsets take.")


class PromptsConfig(_Subsets):
    """The embedded corpus: telephone-system prompts, one professional speaker a language, about 20 minutes each."""

    kind: Literal["prompts"] = "prompts"
    language: Language = "es"


class FolderConfig(_Subsets):
    """A folder with a `manifest.tsv` (columns id, path, duration_seconds, text; optionally split, speaker) and audio.

    `study corpora prepare` makes one of a published corpus, with the audio in a store that is read without decoding.
    """

    kind: Literal["folder"] = "folder"
    # The content of the manifest is part of a stage's identity, its place on disk is not.
    root: Path = cosmetic(
        ..., description=f"Folder of `manifest.tsv`. A relative one starts at ${CORPORA_VARIABLE}, if that is set."
    )
    language: str | None = Field(None, description="ISO 639-1 code; needed for training on phones.")
    labelled_list: str | None = Field(
        None,
        pattern=r"^[\w.-]+$",
        description="Labelled train speech: the utterances of this published list, such as 10min, 1h or 10h of "
        "Libri-Light. Lists lie in the folder's `lists/`, one id a line.",
    )

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: Path) -> Path:
        return below_corpora(root)


SingleCorpusConfig = Annotated[PromptsConfig | FolderConfig, Field(discriminator="kind")]


def _several(given: Any) -> Any:
    """One corpus is a list of one."""
    return given if isinstance(given, list | tuple) else (given,)


class MixtureConfig(_Subsets):
    """Labelled speech of one corpus or several, and the train audio of several as unlabelled speech.

    A corpus with hours h is drawn with probability proportional to h ** sampling_exponent: 1 as they are, 0 alike
    (XLSR-53 and XLS-R, arXiv:2111.09296 section 3: 0.5).
    """

    kind: Literal["mixture"] = "mixture"
    labelled: Annotated[tuple[SingleCorpusConfig, ...], BeforeValidator(_several)] = Field(min_length=1)
    unlabelled: tuple[SingleCorpusConfig, ...] = Field(min_length=1)
    sampling_exponent: float = Field(0.5, ge=0, le=1)

    @property
    def language(self) -> str | None:
        """That of the labelled speech; None when it is in several, or not known."""
        languages = {corpus.language for corpus in self.labelled}
        return languages.pop() if len(languages) == 1 else None


CorpusConfig = Annotated[PromptsConfig | FolderConfig | MixtureConfig, Field(discriminator="kind")]


class CharactersConfig(Config):
    """The characters of the labelled train transcripts, and the CTC blank."""

    kind: Literal["characters"] = "characters"


class LettersConfig(Config):
    """fairseq's 32 symbols for English: the CTC blank, word boundary, 26 letters, apostrophe, three without use."""

    kind: Literal["letters"] = "letters"


class PiecesConfig(Config):
    """Pieces of words, by SentencePiece's unigram model of the labelled train transcripts (P-BLJ: 1023)."""

    kind: Literal["pieces"] = "pieces"
    vocabulary_size: int = Field(1023, ge=8, description="Symbols, the CTC blank included; at most.")


class PhonesConfig(Config):
    """Phones of a language (`trainables.data.phones`)."""

    kind: Literal["phones"] = "phones"
    language: str


OutputsConfig = Annotated[
    Annotated[CharactersConfig | LettersConfig | PiecesConfig, Field(discriminator="kind")],
    default_kind("characters"),
]
StageOutputsConfig = Annotated[
    CharactersConfig | LettersConfig | PiecesConfig | PhonesConfig, Field(discriminator="kind")
]


class CropConfig(Config):
    """Batches without padding: each utterance is cropped to the shortest of its batch, at a random place (fairseq)."""

    max_seconds: float = Field(15.625, gt=0, description="No crop is longer.")
    min_seconds: float = Field(2.0, ge=0, description="Shorter utterances are left out.")
