"""Which speech a trial uses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from trainables.config import Config, cosmetic

SAMPLE_RATE_HZ = 16_000

Language = Literal["en", "es", "fr", "it", "ru"]


class PromptsConfig(Config):
    """The embedded corpus: telephone-system prompts, one professional speaker a language, about 20 minutes each."""

    kind: Literal["prompts"] = "prompts"
    language: Language = Field("es", description="Language of the labelled speech and of dev and test.")
    more_unlabelled: tuple[Language, ...] = Field(
        (), description="Languages whose train audio joins the unlabelled stream (never their text)."
    )


class FolderConfig(Config):
    """Any folder with a `manifest.tsv` (columns id, path, duration_seconds, text; optionally split) and audio files."""

    kind: Literal["folder"] = "folder"
    # The content of the manifest is part of a stage's identity, its place on disk is not.
    root: Path = cosmetic(..., description="Folder of `manifest.tsv`; audio paths are relative to it.")


CorpusConfig = Annotated[PromptsConfig | FolderConfig, Field(discriminator="kind")]
