"""Which stages each regime has, what they take over from one another, and what each of their parts learns."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.conftest import SMALL_MODEL, small_trial, spanish_rows, write_corpus
from trainables.data.config import CharactersConfig, FolderConfig, PhonesConfig, PromptsConfig
from trainables.losses.config import BilevelConfig, ContrastiveConfig, CpcConfig, CtcConfig, PseudoLabelConfig
from trainables.stage import Stage
from trainables.trial import TrialConfig, problems, stages_of

Regime = dict[str, Any]

BACKBONE, CTC_HEAD, SELF_HEAD = "backbone", "ctc_head", "self_supervised_head"
STEPS: dict[str, Any] = {"steps": 4}
PRETRAIN: dict[str, Any] = {"steps": 6, "learning_rate": 7e-3}
FINETUNE: dict[str, Any] = {"steps": 5, "learning_rate": 3e-3}


def supervised(**train: Any) -> Regime:
    return {"kind": "supervised", "train": {**STEPS, **train}}


def pretrain_finetune(**finetune: Any) -> Regime:
    return {"kind": "pretrain_finetune", "pretrain": PRETRAIN, "finetune": {**FINETUNE, **finetune}}


def bl_just(*, pretrain: Regime | None = None, finetune: Regime | None = STEPS, **joint: Any) -> Regime:
    return {"kind": "bl_just", "pretrain": pretrain, "joint": {**STEPS, **joint}, "finetune": finetune}


def joint(*, pretrain: Regime | None = None, **train: Any) -> Regime:
    return {"kind": "joint", "pretrain": pretrain, "train": {**STEPS, **train}}


def wav2vec_s(*, pretrain: Regime | None = PRETRAIN, **semi_supervised: Any) -> Regime:
    return {
        "kind": "wav2vec_s",
        "pretrain": pretrain,
        "semi_supervised": {**STEPS, **semi_supervised},
        "finetune": FINETUNE,
    }


# (regime, (kind of each stage, and what it takes over of the one before))
CHAINS: dict[str, tuple[Regime, list[tuple[str, set[str]]]]] = {
    "supervised": (supervised(), [("supervised", set())]),
    "pretrain_finetune": (pretrain_finetune(), [("pretrain", set()), ("finetune", {BACKBONE})]),
    "bl_just": (bl_just(), [("joint", set()), ("finetune", {BACKBONE, CTC_HEAD})]),
    "bl_just, no finetune": (bl_just(finetune=None), [("joint", set())]),
    "bl_just, no exploration": (
        bl_just(exploration_steps=0),
        [("joint", set()), ("finetune", {BACKBONE, CTC_HEAD})],
    ),
    "bl_just, pretrain": (
        bl_just(pretrain=PRETRAIN),
        [("pretrain", set()), ("joint", {BACKBONE, SELF_HEAD}), ("finetune", {BACKBONE, CTC_HEAD})],
    ),
    "bl_just, pretrain alone": (
        bl_just(pretrain=PRETRAIN, exploration_steps=0, finetune=None),
        [("pretrain", set()), ("joint", {BACKBONE, SELF_HEAD})],
    ),
    "bl_just, other self-supervision": (
        bl_just(pretrain=PRETRAIN, loss={"self_supervised": {"kind": "cpc"}}, finetune=None),
        [("pretrain", set()), ("joint", {BACKBONE})],
    ),
    "joint": (joint(), [("joint", set())]),
    "joint, pretrain": (joint(pretrain=PRETRAIN), [("pretrain", set()), ("joint", {BACKBONE, SELF_HEAD})]),
    "joint, other self-supervision": (
        joint(pretrain=PRETRAIN, self_supervised={"kind": "cpc"}),
        [("pretrain", set()), ("joint", {BACKBONE})],
    ),
    "wav2vec_s": (
        wav2vec_s(),
        [("pretrain", set()), ("semi_supervised", {BACKBONE}), ("finetune", {BACKBONE})],
    ),
    "wav2vec_s, contrastive": (
        wav2vec_s(unlabelled="contrastive"),
        [("pretrain", set()), ("semi_supervised", {BACKBONE, SELF_HEAD}), ("finetune", {BACKBONE})],
    ),
    "wav2vec_s, pseudo-labels": (
        wav2vec_s(unlabelled="pseudo_labels"),
        [("pretrain", set()), ("semi_supervised", {BACKBONE}), ("finetune", {BACKBONE})],
    ),
    "wav2vec_s, phones": (
        wav2vec_s(labels="phones"),
        [("pretrain", set()), ("semi_supervised", {BACKBONE}), ("finetune", {BACKBONE})],
    ),
    "wav2vec_s, no pretrain": (
        wav2vec_s(pretrain=None),
        [("semi_supervised", set()), ("finetune", {BACKBONE})],
    ),
}
EVERY = pytest.mark.parametrize(
    ("regime", "expected"), CHAINS.values(), ids=[name.replace(" ", "-") for name in CHAINS]
)


def trial(regime: Regime, **changes: Any) -> TrialConfig:
    return TrialConfig.model_validate({"model": SMALL_MODEL, "regime": regime, **changes})


def stages(regime: Regime, **changes: Any) -> Sequence[Stage]:
    return stages_of(trial(regime, **changes))


def rates(stage: Stage) -> list[Any]:
    return [phase.learning_rates for phase in stage.phases]


def losses(stage: Stage) -> list[Any]:
    return [phase.loss for phase in stage.phases]


@EVERY
def test_stages_run_in_order_and_each_takes_over_parts_of_the_one_before(
    regime: Regime, expected: list[tuple[str, set[str]]]
) -> None:
    chain = stages(regime)
    assert [(stage.kind, {*(stage.initial.parts if stage.initial else ())}) for stage in chain] == expected
    assert [stage.initial and stage.initial.stage for stage in chain] == [None, *chain[:-1]]
    for stage in chain[1:]:
        assert stage.initial is not None
        assert {*stage.initial.parts} <= {*stage.initial.stage.parts} & {*stage.parts}


@EVERY
def test_only_the_last_stage_keeps_its_best_weights_and_is_tested(
    regime: Regime, expected: list[tuple[str, set[str]]]
) -> None:
    *earlier, last = stages(regime)
    assert {(stage.keep, stage.evaluate_test) for stage in earlier} <= {("last", False)}
    assert (last.keep, last.evaluate_test) == ("best", True)


@EVERY
def test_only_the_semi_supervised_stage_names_its_dev_otherwise(
    regime: Regime, expected: list[tuple[str, set[str]]]
) -> None:
    names = {stage.kind: stage.dev_name for stage in stages(regime)}
    assert names == {kind: "source_dev" if kind == "semi_supervised" else "dev" for kind, _ in expected}


@EVERY
def test_stages_with_labels_are_evaluated_on_dev_and_pretraining_is_not(
    regime: Regime, expected: list[tuple[str, set[str]]]
) -> None:
    for stage in stages(regime):
        assert (stage.evaluate_every is None) == (stage.kind == "pretrain") == ("labelled" not in stage.streams)


@EVERY
def test_the_first_stage_alone_starts_from_init(
    regime: Regime, expected: list[tuple[str, set[str]]], tmp_path: Path
) -> None:
    (tmp_path / "weights.pt").write_bytes(b"weights")
    first, *others = stages(regime, init=str(tmp_path / "weights.pt"))
    assert first.start is not None
    assert [stage.start for stage in others] == [None] * len(others)


def test_the_last_weights_are_kept_where_they_are_asked_for() -> None:
    *_, last = stages(pretrain_finetune(keep="last"))
    assert last.keep == "last"
    *_, last = stages(bl_just(finetune=None, keep="last"))
    assert last.keep == "last"


# Losses and learning rates


def test_supervised_training_and_fine_tuning_are_ctc_with_a_frozen_start() -> None:
    loss = {"mask": {"time_probability": 0.3}, "extractor_gradient": 0}
    settings = {"learning_rate": 2e-3, "frozen_backbone_steps": 3, "loss": loss}
    for stage in (stages(supervised(**settings))[-1], stages(pretrain_finetune(**settings))[-1]):
        (phase,) = stage.phases
        assert phase.loss == CtcConfig.model_validate(loss)
        assert phase.learning_rates == {BACKBONE: 2e-3, CTC_HEAD: 2e-3}
        assert phase.frozen_backbone_steps == 3


def test_only_stages_with_equal_masks_have_the_new_version_of_the_mathematics() -> None:
    equal = {"kind": "ctc", "mask": {"equal": True}}
    versions = [stage.version for stage in stages(pretrain_finetune(loss=equal))]
    versions += [stage.version for stage in stages(bl_just(loss={"ctc": equal}))]
    assert versions == [4, 5, 5, 4]
    assert {stage.version for stage in stages(pretrain_finetune())} == {4}


@pytest.mark.parametrize("loss", [{"negatives": 7}, {"kind": "cpc", "negatives": 7}])
def test_pretraining_has_its_loss_and_one_learning_rate(loss: dict[str, Any]) -> None:
    (pretrain, _) = stages({**pretrain_finetune(), "pretrain": {**PRETRAIN, "loss": loss}})
    kind = CpcConfig if "kind" in loss else ContrastiveConfig
    assert losses(pretrain) == [kind(negatives=7)]
    assert rates(pretrain) == [{BACKBONE: 7e-3, SELF_HEAD: 7e-3}]
    assert pretrain.self_supervision == losses(pretrain)[0].kind
    assert pretrain.streams == ("unlabelled",)


ALPHA, BETA, HEAD = 1e-3, 2e-3, 4e-3
RATES: dict[str, Any] = {"lower_learning_rate": ALPHA, "upper_learning_rate": BETA}


@pytest.mark.parametrize("pretrain", [None, PRETRAIN])
@pytest.mark.parametrize("head", [None, HEAD])
def test_bl_just_explores_with_alpha_and_goes_on_jointly_with_beta(head: float | None, pretrain: Regime | None) -> None:
    regime = bl_just(pretrain=pretrain, exploration_steps=5, joint_steps=7, head_learning_rate=head, **RATES)
    stage = stages(regime)[-2]
    assert rates(stage) == [
        {BACKBONE: ALPHA, SELF_HEAD: ALPHA},
        {BACKBONE: BETA, CTC_HEAD: head or BETA, SELF_HEAD: ALPHA},
    ]
    assert [phase.steps for phase in stage.phases] == [5, 7]
    assert [phase.frozen_backbone_steps for phase in stage.phases] == [0, 0]
    assert losses(stage) == [ContrastiveConfig(), BilevelConfig()]


def test_bl_just_without_exploration_is_its_joint_phase_alone() -> None:
    stage, _ = stages(bl_just(exploration_steps=0, joint_steps=7, **RATES))
    assert rates(stage) == [{BACKBONE: BETA, CTC_HEAD: BETA, SELF_HEAD: ALPHA}]
    assert losses(stage) == [BilevelConfig()]


@pytest.mark.parametrize("kind", ["contrastive", "cpc"])
def test_bl_just_explores_with_the_self_supervised_loss_of_its_joint_steps(kind: str) -> None:
    loss = {"gamma_start": 0.1, "gamma_end": 0.3, "self_supervised": {"kind": kind, "negatives": 9}}
    stage, _ = stages(bl_just(loss=loss))
    explore, together = losses(stage)
    assert together == BilevelConfig.model_validate(loss)
    assert explore == together.self_supervised
    assert (explore.kind, explore.negatives, stage.self_supervision) == (kind, 9, kind)


@pytest.mark.parametrize("head", [None, HEAD])
def test_bl_just_fine_tunes_at_a_fraction_of_beta_whatever_the_head_s_rate(head: float | None) -> None:
    final = {**STEPS, "learning_rate_scale": 0.1, "loss": {"extractor_gradient": 0.5}}
    _, stage = stages(bl_just(finetune=final, head_learning_rate=head, **RATES))
    assert rates(stage) == [pytest.approx({BACKBONE: BETA / 10, CTC_HEAD: BETA / 10})]
    assert losses(stage) == [CtcConfig(extractor_gradient=0.5)]


def test_bl_just_says_whether_it_ends_with_fine_tuning() -> None:
    regime = bl_just()
    del regime["finetune"]
    with pytest.raises(ValidationError, match=r"finetune\n.*Field required"):
        trial(regime)


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_plain_joint_training_is_a_fixed_weighted_sum_at_one_learning_rate(weight: float) -> None:
    settings: dict[str, Any] = {"ctc": {"extractor_gradient": 0.5}, "self_supervised": {"negatives": 9}}
    (stage,) = stages(joint(self_supervised_weight=weight, learning_rate=BETA, **settings))
    assert rates(stage) == [{BACKBONE: BETA, CTC_HEAD: BETA, SELF_HEAD: BETA}]
    assert losses(stage) == [
        BilevelConfig(
            gamma_start=weight,
            gamma_end=weight,
            ctc=CtcConfig(extractor_gradient=0.5),
            self_supervised=ContrastiveConfig(negatives=9),
        )
    ]
    assert stage.streams == ("labelled", "unlabelled")


# wav2vec-S

CTC = {"extractor_gradient": 0.0, "mask": {"time_length": 3}}
UNLABELLED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "none": (CtcConfig.model_validate(CTC), ("labelled",)),
    "contrastive": (
        BilevelConfig(
            gamma_start=0.4,
            gamma_end=0.4,
            ctc=CtcConfig.model_validate(CTC),
            self_supervised=ContrastiveConfig(negatives=9),
        ),
        ("labelled", "unlabelled"),
    ),
    "pseudo_labels": (
        PseudoLabelConfig(weight=0.4, teacher_decay=0.9, warmup_steps=2, ctc=CtcConfig.model_validate(CTC)),
        ("labelled", "unlabelled"),
    ),
}


@pytest.mark.parametrize("labels", ["characters", "phones"])
@pytest.mark.parametrize("unlabelled", UNLABELLED)
def test_the_semi_supervised_stage_has_the_loss_on_unlabelled_speech_that_is_chosen(
    unlabelled: str, labels: str
) -> None:
    regime = wav2vec_s(
        unlabelled=unlabelled,
        labels=labels,
        learning_rate=BETA,
        frozen_backbone_steps=3,
        unlabelled_weight=0.4,
        teacher_decay=0.9,
        teacher_warmup_steps=2,
        ctc=CTC,
        self_supervised={"negatives": 9},
    )
    _, stage, finetune = stages(regime)
    loss, streams = UNLABELLED[unlabelled]
    assert losses(stage) == [loss]
    assert stage.streams == streams
    assert rates(stage) == [dict.fromkeys(loss.parts, BETA)]
    assert [phase.frozen_backbone_steps for phase in stage.phases] == [3]
    assert stage.outputs == (PhonesConfig(language="es") if labels == "phones" else CharactersConfig())
    assert (finetune.outputs.kind, losses(finetune), rates(finetune)) == (
        "characters",
        [CtcConfig()],
        [{BACKBONE: 3e-3, CTC_HEAD: 3e-3}],
    )


def test_variants_of_the_semi_supervised_stage_are_stages_of_their_own_after_one_pretraining() -> None:
    found = [
        stages(wav2vec_s(unlabelled=unlabelled, labels=labels))
        for unlabelled, labels in itertools.product(UNLABELLED, ("characters", "phones"))
    ]
    assert [len({chain[index].fingerprint() for chain in found}) for index in range(3)] == [1, 6, 6]


@pytest.mark.parametrize("language", ["fr", "ru"])
def test_phones_are_those_of_the_corpus_that_the_stage_reads(language: str) -> None:
    own = {"kind": "prompts", "language": language}
    for regime, changes in (
        (wav2vec_s(labels="phones"), {"corpus": own}),
        (wav2vec_s(labels="phones", corpus=own), {}),
    ):
        assert [getattr(stage.outputs, "language", None) for stage in stages(regime, **changes)] == [
            None,
            language,
            None,
        ]
        assert not list(problems(trial(regime, **changes)))


def test_phones_of_a_mixture_are_those_of_its_labelled_corpus() -> None:
    it, fr = ({"kind": "prompts", "language": language} for language in ("it", "fr"))
    found = stages(wav2vec_s(labels="phones"), corpus={"kind": "mixture", "labelled": it, "unlabelled": [fr]})
    assert found[1].outputs == PhonesConfig(language="it")


def test_phones_of_an_unknown_language_are_a_problem(small_corpus: Path) -> None:
    corpus = {"kind": "folder", "root": str(small_corpus), "language": "xx"}
    ((field, message),) = problems(trial(wav2vec_s(labels="phones"), corpus=corpus))
    assert field == "corpus"
    assert message.startswith("the phones of language 'xx' are not known")
    assert not list(problems(trial(wav2vec_s(), corpus=corpus)))


def test_phones_of_a_folder_without_a_language_are_a_problem(small_corpus: Path) -> None:
    given = TrialConfig.model_validate(small_trial(small_corpus, wav2vec_s(labels="phones")))
    assert "language" in next(iter(problems(given)))[1]


def test_wav2vec_s_from_random_weights_is_a_problem(tmp_path: Path) -> None:
    message = "wav2vec_s goes on from self-supervised weights; give `pretrain`, or `init` beside the regime"
    assert list(problems(trial(wav2vec_s(pretrain=None)))) == [("regime", message)]
    assert not list(problems(trial(wav2vec_s())))
    (tmp_path / "weights.pt").write_bytes(b"weights")
    from_init = trial(wav2vec_s(pretrain=None), init=str(tmp_path / "weights.pt"))
    assert message not in [found for _, found in problems(from_init)]


def test_a_corpus_of_the_semi_supervised_stage_is_read_by_that_stage_alone(tmp_path: Path) -> None:
    source = FolderConfig(root=write_corpus(tmp_path, spanish_rows(16)))
    plain = stages(wav2vec_s(unlabelled="contrastive"))
    found = stages(wav2vec_s(unlabelled="contrastive", corpus=source.model_dump(mode="json")))
    assert [stage.corpus for stage in found] == [PromptsConfig(), source, PromptsConfig()]
    assert [one.data_fingerprint == other.data_fingerprint for one, other in zip(plain, found, strict=True)] == [
        True,
        False,
        True,
    ]
    assert found[0].fingerprint() == plain[0].fingerprint()


def test_a_corpus_of_the_joint_stage_is_read_by_its_fine_tuning_too(tmp_path: Path) -> None:
    source = FolderConfig(root=write_corpus(tmp_path, spanish_rows(16)))
    found = stages(bl_just(pretrain=PRETRAIN, corpus=source.model_dump(mode="json")))
    assert [stage.corpus for stage in found] == [PromptsConfig(), source, source]
    with pytest.raises(ValidationError, match=r"set `joint\.corpus` instead"):
        trial(bl_just(finetune={**STEPS, "corpus": {"kind": "prompts"}}))


# What regimes share


def test_regimes_with_equal_settings_share_one_pretraining() -> None:
    regimes = [
        pretrain_finetune(),
        bl_just(pretrain=PRETRAIN),
        bl_just(pretrain=PRETRAIN, exploration_steps=0, finetune=None),
        joint(pretrain=PRETRAIN),
        wav2vec_s(),
        wav2vec_s(unlabelled="pseudo_labels", labels="phones"),
    ]
    chains = [stages(regime) for regime in regimes]
    assert {chain[0].kind for chain in chains} == {"pretrain"}
    assert len({chain[0].fingerprint() for chain in chains}) == 1
    assert len({chain[-1].fingerprint() for chain in chains}) == len(regimes)


def test_regimes_with_other_settings_or_seeds_do_not() -> None:
    one, other = pretrain_finetune(), bl_just(pretrain={**PRETRAIN, "learning_rate": 6e-3})
    assert stages(one)[0].fingerprint() != stages(other)[0].fingerprint()
    assert stages(one)[0].fingerprint() != stages(one, seed=1)[0].fingerprint()


def test_fine_tuning_is_not_shared_by_regimes_that_came_to_it_otherwise() -> None:
    straight, detour = stages(pretrain_finetune())[-1], stages(wav2vec_s())[-1]
    assert straight.with_(initial=None) == detour.with_(initial=None)
    assert straight.fingerprint() != detour.fingerprint()
