"""A trial: one fully resolved configuration, the stages that it runs, and what keeps it from running."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from pydantic import Field

from trainables.config import Config
from trainables.data.config import (
    SAMPLE_RATE_HZ,
    CharactersConfig,
    CorpusConfig,
    CropConfig,
    LettersConfig,
    MixtureConfig,
    OutputsConfig,
    PhonesConfig,
    PiecesConfig,
    PromptsConfig,
    StageOutputsConfig,
)
from trainables.data.corpus import AbsentCorpusError, Corpus, CorpusError, Utterance, read_corpus, total_seconds
from trainables.data.phones import PhonesError, refuse_language
from trainables.data.pieces import fewest_pieces
from trainables.data.scripts import UNSPACED, script_of
from trainables.data.text import LETTERS
from trainables.decoding.config import LanguageModelConfig
from trainables.decoding.files import missing
from trainables.decoding.ngram import vocabulary
from trainables.losses.config import Stream
from trainables.models.checkpoint_files import (
    CheckpointError,
    described_model,
    fingerprint,
    local_copy,
    misfit,
    weight_files,
)
from trainables.models.config import CompactCnnGruConfig, FrameGeometry, frames_after
from trainables.models.presets import ModelConfig
from trainables.regimes.config import RegimeConfig, Wav2vecSRegime
from trainables.regimes.stages import Setting, StageData, decoding, last_stage
from trainables.scoring import Hypothesis, error_rates
from trainables.stage import Stage, TrainedWeights, chain

FASTEST = 1.1  # speed that augmentation may play an utterance at
MAX_BEYOND_LETTERS = 0.01  # share of characters that would be left out
MAX_UNALIGNABLE = 0.01  # share of utterances whose text may be too long for CTC: their loss counts zero


class TrialConfig(Config):
    """Everything that decides a result. Workers, devices and places on disk are not here: they do not."""

    corpus: CorpusConfig = PromptsConfig()
    model: ModelConfig = CompactCnnGruConfig()
    init: str | None = Field(
        None,
        description="Trained weights that the first stage starts from: a Hugging Face folder, a stage's folder, a .pt "
        "file of fairseq or SEW, or the name of a model on the Hugging Face hub. The CTC head starts fresh.",
    )
    regime: RegimeConfig
    outputs: OutputsConfig = Field(CharactersConfig(), description="What the recogniser writes.")
    language_model: LanguageModelConfig | None = Field(
        None, description="Dev and test are decoded with it, too, after the last stage."
    )
    seed: int = Field(0, ge=0)


@functools.lru_cache
def corpus_of(config: CorpusConfig) -> Corpus:
    """The corpus of the settings, read once."""
    return read_corpus(config)


def stages_of(trial: TrialConfig) -> Sequence[Stage]:
    """The stages of the trial, in order. Reads the corpora's manifests, for their content is part of their identity.

    A corpus that is not on this machine is known by its settings, so that a study can be planned before it is there.
    Raises ValueError for what cannot be known then.
    """
    setting = Setting(
        corpus=trial.corpus,
        read=_stage_data,
        model=trial.model,
        start=trained_weights(trial.init) if trial.init else None,
        seed=trial.seed,
        outputs=trial.outputs,
    )
    last = last_stage(trial.regime, setting)
    return chain(decoding(last, trial.language_model, setting) if trial.language_model else last)


def _stage_data(config: CorpusConfig) -> StageData:
    try:
        return _present_data(config)
    except AbsentCorpusError:
        return _assumed(config)


@functools.lru_cache
def _present_data(config: CorpusConfig) -> StageData:
    corpus = corpus_of(config)
    streams: tuple[Stream, ...] = ("labelled", "unlabelled")
    return StageData(
        corpus=config,
        fingerprints={stream: corpus.fingerprint([stream]) for stream in streams},
        seconds={"labelled": total_seconds(corpus.train), "unlabelled": total_seconds(corpus.unlabelled)},
    )


def _assumed(config: CorpusConfig) -> StageData:
    """What a corpus that is not there will be, going by its settings."""
    settings = config.model_dump(mode="json")
    minutes, hours = config.labelled_minutes, config.unlabelled_hours
    several = isinstance(config, MixtureConfig) and len(config.labelled) > 1
    own: dict[Stream, tuple[str, ...]] = {
        "labelled": (
            "kind",
            "root",
            "labelled",
            "labelled_list",
            "labelled_minutes",
            *(["sampling_exponent"] if several else []),
            *(["subset_seed"] if minutes else []),
        ),
        "unlabelled": (
            *("kind", "root", "unlabelled", "sampling_exponent", "unlabelled_hours", "unlabelled_fraction"),
            *(["subset_seed"] if hours or config.unlabelled_fraction < 1 else []),
        ),
    }
    return StageData(
        corpus=config,
        fingerprints={
            stream: "absent:" + json.dumps({name: settings[name] for name in names if name in settings})
            for stream, names in own.items()
        },
        seconds={
            "labelled": minutes * 60 if minutes else None,
            "unlabelled": hours * 3600 if hours else None,
        },
    )


def corpora_of(trial: TrialConfig) -> list[CorpusConfig]:
    """The corpora that the trial's stages read."""
    return list(dict.fromkeys(stage.corpus for stage in stages_of(trial)))


def absent(config: CorpusConfig) -> list[str]:
    """Why the corpus, or each part of a mixture, cannot be read because it is not on this machine."""
    if isinstance(config, MixtureConfig):
        return [reason for part in (*config.labelled, *config.unlabelled) for reason in absent(part)]
    try:
        corpus_of(config)
    except AbsentCorpusError as error:
        return [str(error)]
    return []


def trained_weights(source: str) -> TrainedWeights:
    """What `init` names. A model of the hub that is not on this machine is known by its name until it is downloaded."""
    path = local_copy(source)
    if path and Path(source).expanduser().exists():
        source = str(path)  # workers have other working directories
    return TrainedWeights(source=source, sha256=fingerprint(path) if path else f"not downloaded: {source}")


def lacks_metric(trial: TrialConfig, metric: str) -> str | None:
    """Why the trial will not have the metric on its dev split; its corpora can be read."""
    if metric.endswith("_lm") and trial.language_model is None:
        return f"{metric} needs a language model; give the trial its `language_model`"
    *_, last = stages_of(trial.with_(init=None))
    if "_mer" not in metric or absent(last.corpus) or _mixed(last.corpus):
        return None
    return f"there is no {metric} on a dev split in one script, where it would be the word error rate; take dev_wer"


@functools.lru_cache
def _mixed(config: CorpusConfig) -> bool:
    """Whether its dev split has a mixed error rate."""
    return "mer" in error_rates([Hypothesis(u.id, u.text or "", "") for u in corpus_of(config).dev])


def problems(trial: TrialConfig, *, absent_is_fine: bool = False) -> Iterator[tuple[str, str]]:
    """(field, message) for each of the trial's inputs that cannot be used.

    `absent_is_fine`: a corpus that is not on this machine is no problem.
    """
    yield from _init_problems(trial)
    if isinstance(trial.regime, Wav2vecSRegime):
        for message in _wav2vec_s_problems(trial, trial.regime):
            yield "regime", message
    try:
        stages = stages_of(trial.with_(init=None))
    except CorpusError as error:
        yield "corpus", str(error)
        return
    except ValueError as error:
        yield "regime", str(error)
        for reason in [] if absent_is_fine else absent(trial.corpus):
            yield "corpus", reason
        return
    yield from _language_model_problems(trial, absent_is_fine=absent_is_fine)
    found = [
        ("corpus" if stage.corpus == trial.corpus else "regime", message)
        for stage in stages
        for message in _stage_problems(trial, stage, absent_is_fine=absent_is_fine)
    ]
    yield from dict.fromkeys(found)


def _wav2vec_s_problems(trial: TrialConfig, regime: Wav2vecSRegime) -> Iterator[str]:
    if not (trial.init or regime.pretrain):
        yield "wav2vec_s goes on from self-supervised weights; give `pretrain`, or `init` beside the regime"
    source = regime.semi_supervised.corpus or trial.corpus
    if regime.semi_supervised.labels == "phones" and source.language is None:
        yield "labels that are phones need to know the language; give the corpus its `language`"


def _language_model_problems(trial: TrialConfig, *, absent_is_fine: bool) -> Iterator[tuple[str, str]]:
    config = trial.language_model
    if config is None:
        return
    for message in [] if absent_is_fine else missing(config):
        yield "language_model", message
    *_, last = stages_of(trial.with_(init=None))
    if config.unit == "words" and not absent(last.corpus) and _unspaced(last.corpus):
        message = "words are not separated in the script of the train transcripts; take unit: symbols"
        yield "language_model", message
    if config.path and config.unit == "words" and not config.lexicon and config.path.is_file():
        try:
            vocabulary(config.path)
        except ValueError as error:
            yield "language_model", str(error)


def _stage_problems(trial: TrialConfig, stage: Stage, *, absent_is_fine: bool) -> Iterator[str]:
    if isinstance(stage.outputs, PhonesConfig):
        try:
            refuse_language(stage.outputs.language)
        except PhonesError as error:
            yield str(error)
    if reasons := absent(stage.corpus):
        yield from () if absent_is_fine else reasons
        return
    if "labelled" in stage.streams and not corpus_of(stage.corpus).train:
        yield "the corpus has no labelled speech, and this stage needs train, dev and test"
    if message := _misfit(stage.corpus, trial.model.geometry, trial.model.min_samples, stage.outputs):
        yield message
    if isinstance(stage.outputs, LettersConfig) and (message := _beyond_letters(corpus_of(stage.corpus))):
        yield message
    if isinstance(stage.outputs, PiecesConfig) and "labelled" in stage.streams:
        needed = fewest_pieces(u.text or "" for u in corpus_of(stage.corpus).train)
        if needed > stage.outputs.vocabulary_size:
            size = stage.outputs.vocabulary_size
            yield f"outputs.vocabulary_size is {size}; pieces of these transcripts need at least {needed}"
    if stage.crop and "unlabelled" in stage.streams:
        yield from _crop_problems(stage.crop, trial.model.min_samples, corpus_of(stage.corpus))


def _crop_problems(crop: CropConfig, min_samples: int, corpus: Corpus) -> Iterator[str]:
    needed = min_samples / SAMPLE_RATE_HZ
    if crop.max_seconds < needed:
        yield f"crop.max_seconds is {crop.max_seconds:g}, and this model needs {needed:.3f} s; set a larger one"
    if all(u.duration_seconds < crop.min_seconds for u in corpus.unlabelled):
        yield f"no unlabelled utterance is as long as crop.min_seconds, {crop.min_seconds:g} s; set a smaller one"


def _init_problems(trial: TrialConfig) -> Iterator[tuple[str, str]]:
    if not trial.init:
        return
    try:
        path = local_copy(trial.init)
        found = described_model(path) if path else None
        if path:
            weight_files(path)
    except CheckpointError as error:
        yield "init", str(error)
    else:
        if found is not None and (message := misfit(trial.model, found)):
            yield "init", f"{trial.init} {message}"


@functools.lru_cache
def _unspaced(config: CorpusConfig) -> bool:
    texts = "".join(u.text or "" for u in corpus_of(config).train)
    return any(script_of(character) in UNSPACED for character in set(texts))


@functools.lru_cache
def _misfit(
    corpus_config: CorpusConfig, geometry: FrameGeometry, min_samples: int, outputs: StageOutputsConfig
) -> str | None:
    """Why the corpus does not go with a model of this frame geometry."""
    corpus = corpus_of(corpus_config)
    everything = (*corpus.train, *corpus.dev, *corpus.test, *corpus.unlabelled)
    needed = math.ceil(min_samples * FASTEST - 1e-6) / SAMPLE_RATE_HZ
    for utterance in everything:
        if utterance.duration_seconds < needed:
            return (
                f"utterance {utterance.id!r} lasts {utterance.duration_seconds:.3f} s, and this model needs "
                f"{needed:.3f} s; remove its line from the manifest"
            )
    pieces = isinstance(outputs, PiecesConfig)
    needed_for = _words_of if pieces else _frames_for_text
    unalignable = [u for u in corpus.train if _frames(u, geometry) < needed_for(u.text or "")]
    if len(unalignable) <= MAX_UNALIGNABLE * len(corpus.train):
        return None
    example = unalignable[0]
    return (
        f"{len(unalignable)} of {len(corpus.train)} train utterances have fewer frames than CTC needs for their text, "
        f"such as {example.id!r} with {_frames(example, geometry)} frames for {needed_for(example.text or '')}; "
        "take a model with more frames a second, or remove their lines"
    )


def _frames(utterance: Utterance, geometry: FrameGeometry) -> int:
    return frames_after(geometry, round(utterance.duration_seconds * SAMPLE_RATE_HZ))


def _frames_for_text(text: str) -> int:
    """One for each character, and a blank between equal ones."""
    return len(text) + sum(a == b for a, b in pairwise(text))


def _words_of(text: str) -> int:
    """Each has at least one piece; how many there are is not known before they are trained."""
    return len(text.split())


def _beyond_letters(corpus: Corpus) -> str | None:
    """Why the 32 letters of English do not go with the corpus."""
    texts = "".join(u.text or "" for u in corpus.train)
    beyond = [c for c in texts if c not in LETTERS]
    if len(beyond) <= MAX_BEYOND_LETTERS * len(texts):
        return None
    shown = " ".join(sorted(set(beyond))[:10])
    return (
        f"outputs: letters are a-z and the apostrophe; {len(beyond) / len(texts):.0%} of the characters of the train "
        f"transcripts are others ({shown}); take outputs: {{kind: characters}}"
    )
