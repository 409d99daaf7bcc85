"""The corpora that can be prepared, by name. Adding one: its module in this folder, and its line here."""

from __future__ import annotations

from trainables.data.corpora import (
    ascend,
    commonvoice,
    covost2,
    folder,
    lhotse_manifests,
    librilight,
    librispeech,
    mucs2021,
    seame,
    switchboard,
    talcs,
    tedlium3,
    voxpopuli,
)
from trainables.data.corpora.segment import PublishedCorpus

CORPORA: dict[str, PublishedCorpus] = {
    "librispeech": librispeech.CORPUS,
    "librispeech-100": librispeech.CLEAN,
    "librilight": librilight.CORPUS,
    "commonvoice": commonvoice.CORPUS,
    "covost2": covost2.CORPUS,
    "tedlium3": tedlium3.CORPUS,
    "voxpopuli": voxpopuli.CORPUS,
    "switchboard": switchboard.CORPUS,
    "ascend": ascend.CORPUS,
    "seame": seame.CORPUS,
    "talcs": talcs.CORPUS,
    "mucs2021": mucs2021.CORPUS,
    "lhotse": lhotse_manifests.CORPUS,
    "folder": folder.CORPUS,
}
