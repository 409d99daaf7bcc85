"""The typed sweep file: every error with its place, value, rule and fix; how trials are put together."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import search_spaces
from study.plan import make_plan
from study.run import main
from study.spec import StudySpec, nested, read_spec
from tests.conftest import small_trial, spanish_rows, write_corpus
from tests.study.builders import spec_of, supervised, write_sweep
from tests.study.hostile import HOSTILE_TEXTS
from trainables.config import merge
from trainables.settings_file import SettingsError, parse_value

QUICKSTART = Path(search_spaces.__file__).parent / "quickstart.yaml"

SWEEP = """\
study: small
question: Is it small?
trial:
  model: {kind: compact_cnn_gru, gru_layers: 1}
arms:
  one:
    trial:
      regime:
        kind: supervised
        train: {steps: 10, learning_rate: 1e-3}
    space:
      regime.train.learning_rate: {kind: log_uniform, low: 1e-4, high: 1e-2}
  two:
    trial:
      regime:
        kind: pretrain_finetune
        pretrain: {steps: 10}
        finetune: {steps: 10}
search: {trials: 3}
convergence: {target: 0.4}
"""

Errors = Callable[..., list[str]]

SPACE = "arms.one.space"
TRAIN = "regime.train"
RATE_LINE = "regime.train.learning_rate: {kind: log_uniform, low: 1e-4, high: 1e-2}"


@pytest.fixture
def errors(tmp_path: Path) -> Errors:
    """The errors of SWEEP with one piece replaced, without the path of the file: `line:column: message`."""

    def read(before: str = "", after: str = "", *overrides: str) -> list[str]:
        assert SWEEP.count(before) == 1 or not before, f"{before!r} is not in the sweep file once"
        path = tmp_path / "sweep.yaml"
        path.write_text(SWEEP.replace(before, after) if before else SWEEP, encoding="utf-8")
        with pytest.raises(SettingsError) as caught:
            read_spec(path, overrides)
        assert str(caught.value) == "\n".join(caught.value.errors)
        return [error.removeprefix(f"{path}:") for error in caught.value.errors]

    return read


class TestErrors:
    def test_the_sweep_file_of_these_tests_is_valid(self, tmp_path: Path) -> None:
        path = tmp_path / "sweep.yaml"
        path.write_text(SWEEP, encoding="utf-8")
        assert list(read_spec(path).arms) == ["one", "two"]

    @pytest.mark.parametrize(
        ("before", "after", "error"),
        [
            # unknown fields, with what was probably meant
            ("search: {", "serch: 1\nsearch: {", "19:1: serch: unknown field 'serch'; did you mean 'search'?"),
            (
                "{trials: 3}",
                "{trials: 3, metrik: dev_cer}",
                "19:21: search.metrik: unknown field 'metrik'; did you mean 'metric'?",
            ),
            (
                "learning_rate: 1e-3",
                "learning_rat: 1e-3",
                f"10:28: arms.one.trial.{TRAIN}.learning_rat: unknown field 'learning_rat'; did you "
                "mean 'learning_rate'?",
            ),
            (
                "gru_layers: 1",
                "gru_layer: 1",
                "4:34: trial.model.gru_layer: unknown field 'gru_layer'; did you mean 'gru_layers'?",
            ),
            ("  model:", "  modle:", "4:3: trial.modle: unknown field 'modle'; did you mean 'model'?"),
            (
                "low: 1e-4",
                "lo: 1e-4, low: 1e-4",
                f"12:55: {SPACE}.{TRAIN}.learning_rate.lo: unknown field 'lo'; did you mean 'low'?",
            ),
            ("    space:", "    spaces:", "11:5: arms.one.spaces: unknown field 'spaces'; did you mean 'space'?"),
            (
                "{trials: 3}",
                "{trials: 3, sampler: {kind: tpe, startup: 2}}",
                "19:42: search.sampler.startup: unknown field 'startup'; did you mean 'startup_trials'?",
            ),
            # wrong types and values, with the value and the rule
            (
                "trials: 3",
                "trials: many",
                "19:10: search.trials: input should be a valid integer, unable to parse string as "
                "an integer, got 'many'",
            ),
            ("trials: 3", "trials: 0", "19:10: search.trials: input should be greater than or equal to 1, got 0"),
            ("target: 0.4", "target: 40", "20:15: convergence.target: input should be less than 1, got 40"),
            (
                "gru_layers: 1",
                "gru_layers: 0",
                "4:34: trial.model.gru_layers: input should be greater than or equal to 1, got 0",
            ),
            (
                "train: {steps: 10,",
                "train: {steps: 1.5,",
                f"10:17: arms.one.trial.{TRAIN}.steps: input should be a valid integer, got a "
                "number with a fractional part, got 1.5",
            ),
            (
                "{trials: 3}",
                "{trials: 3, metric: dev_per}",
                "19:21: search.metric: input should be 'dev_wer', 'dev_cer', 'dev_mer', 'dev_wer_lm', 'dev_cer_lm' "
                "or 'dev_mer_lm', got 'dev_per'",
            ),
            (
                "search: {trials: 3}",
                "search: 3",
                "19:1: search: input should be a valid dictionary or instance of SearchSpec, got 3",
            ),
            ("study: small", "study: two words", "1:1: study: string should match pattern"),
            ("study: small", "study: ../up", "1:1: study: string should match pattern"),
            ("  two:", "  2 x:", "13:3: arms.2 x"),
            # missing
            ("question: Is it small?\n", "", "1:1: question: required, and missing"),
            ("{trials: 3}", "{}", "19:1: search.trials: required, and missing"),
            (
                "train: {steps: 10,",
                "train: {",
                "10:9: arms.one.trial.regime.train: give either steps or epochs, got steps=None and epochs=None",
            ),
            ("        pretrain: {steps: 10}\n", "", "15:7: arms.two.trial.regime.pretrain: required, and missing"),
            # kinds
            (
                "kind: pretrain_finetune",
                "kind: pretrain_finetuen",
                "16:9: arms.two.trial.regime.kind: unknown kind 'pretrain_finetuen'; did you mean 'pretrain_finetune'?",
            ),
            (
                "{kind: log_uniform,",
                "{kind: loguniform,",
                f"12:36: {SPACE}.{TRAIN}.learning_rate.kind: unknown kind 'loguniform'; did you mean 'log_uniform'?",
            ),
            (
                "{trials: 3}",
                "{trials: 3, sampler: {kind: x}}",
                "19:31: search.sampler.kind: unknown kind 'x'; known: cma_es, gp, nsga2, nsga3, quasi_random, "
                "random, tpe",
            ),
            (
                "{trials: 3}",
                "{trials: 3, sampler: {kind: tpe, group: true}}",
                "19:21: search.sampler: group: true models groups of parameters together; give multivariate: true, too",
            ),
            (
                "search: {trials: 3}",
                "search: {trials: 3, sampler: {kind: cma_es}, also_minimise: [parameters]}",
                "19:1: search: cma_es minimises one objective; take tpe, nsga2, nsga3, gp, random or quasi_random",
            ),
            (
                "search: {trials: 3}",
                "search: {trials: 3, also_minimise: [parameters, parameters]}",
                "19:1: search: also_minimise names an objective twice: parameters, parameters",
            ),
            # resources
            (
                "search: {",
                "resources: {gpus_per_worker: 1.5}\nsearch: {",
                "19:1: resources: gpus_per_worker is a part of one GPU or whole GPUs, got 1.5",
            ),
            ("search: {", "quota: 50XB\nsearch: {", "19:1: quota: could not interpret byte unit: XB, got '50XB'"),
            # values to try first
            (
                "    space:",
                "    try_first: [{regime.train.learning_rte: 1e-3}]\n    space:",
                "6:3: arms.one: try_first names 'regime.train.learning_rte', which is not sampled here; did you mean "
                "'regime.train.learning_rate'?",
            ),
            (
                "    space:",
                "    try_first: [{regime.train.learning_rate: 1e-3}, {regime.train.learning_rate: 0.5}]\n    space:",
                "6:3: arms.one: try_first gives 'regime.train.learning_rate' the value 0.5, which its distribution "
                "cannot draw",
            ),
            ("        kind: supervised\n", "", "8:7: arms.one.trial.regime: needs a `kind`"),
            ("{kind: log_uniform, low", "{low", "12:7: arms.one.space.regime.train.learning_rate: needs a `kind`"),
            (
                "kind: compact_cnn_gru",
                "kind: cnn_gru_",
                "4:11: trial.model.kind: unknown kind 'cnn_gru_'; did you mean 'cnn_gru'?",
            ),
            # distributions and space paths
            (
                "low: 1e-4, high: 1e-2",
                "low: 1e-2, high: 1e-4",
                f"12:7: {SPACE}.{TRAIN}.learning_rate: low must be smaller than high, got low=0.01, high=0.0001",
            ),
            (
                "low: 1e-4",
                "low: 0",
                f"12:55: {SPACE}.{TRAIN}.learning_rate.low: input should be greater than 0, got 0",
            ),
            (
                "regime.train.learning_rate:",
                "regime.train.learning_rte:",
                f"12:7: {SPACE}.{TRAIN}.learning_rte: the trial of this arm has no '{TRAIN}.learning_rte'; "
                "did you mean 'regime.train.learning_rate'?",
            ),
            (
                "regime.train.learning_rate:",
                "regime.train:",
                f"12:7: {SPACE}.{TRAIN}: the trial of this arm has no '{TRAIN}'",
            ),
            (
                RATE_LINE,
                "regime.train.steps: {kind: int, low: 0, high: 4}",
                f"12:7: {SPACE}.{TRAIN}.steps: 0 is not possible: input should be greater than or equal to 1, got 0",
            ),
            (
                RATE_LINE,
                "corpus.language: {kind: categorical, choices: [es, de]}",
                f"12:7: {SPACE}.corpus.language: 'de' is not possible: input should be 'en', 'es', "
                "'fr', 'it' or 'ru', got 'de'",
            ),
            (
                "high: 1e-2}",
                "high: 1e-2, when: {model.gru_layers: [1]}}",
                f"12:7: {SPACE}.{TRAIN}.learning_rate: `when` names 'model.gru_layers', which is not listed before",
            ),
            (
                "  model: {kind",
                "  corpus: {kind: folder, root: /nonexistent}\n  model: {kind",
                "4:3: trial.corpus: /nonexistent/manifest.tsv: no such file",
            ),
        ],
    )
    def test_each_names_place_path_value_rule_and_fix(
        self, errors: Errors, before: str, after: str, error: str
    ) -> None:
        found = errors(before, after)
        assert [line for line in found if line.startswith(error)], found
        assert len(found) == 1, found

    def test_all_are_reported_at_once(self, tmp_path: Path) -> None:
        path = tmp_path / "sweep.yaml"
        text = SWEEP.replace("search: {", "serch: 1\nsearch: {").replace("gru_layers: 1", "gru_layers: none")
        text = text.replace("learning_rate: 1e-3", "lerning_rate: 1e-3").replace("low: 1e-4", "low: 1e-1")
        path.write_text(text, encoding="utf-8")
        with pytest.raises(SettingsError) as caught:
            read_spec(path)
        places = sorted(error.removeprefix(f"{path}:").split(": ")[0] for error in caught.value.errors)
        assert places == sorted(["4:34", "10:28", "12:7", "19:1"])

    def test_an_unknown_space_path_is_reported_beside_other_errors(self, errors: Errors) -> None:
        found = errors("regime.train.learning_rate:", "regime.train.rate:", "search.trials=0")
        assert len(found) == 2
        assert any("has no 'regime.train.rate'" in error for error in found)

    def test_an_error_in_what_arms_share_is_reported_once(self, errors: Errors) -> None:
        assert len(errors("gru_layers: 1", "gru_layers: 0")) == 1

    def test_an_arm_may_be_called_like_a_field(self, errors: Errors) -> None:
        """Its errors still come with suggestions."""
        found = errors("  two:\n", "  trial:\n    spce: {}\n")
        assert found == ["14:5: arms.trial.spce: unknown field 'spce'; did you mean 'space'?"]

    def test_a_value_that_an_override_broke_stands_on_the_command_line(self, errors: Errors) -> None:
        (error,) = errors("", "", "serch.trials=4")
        assert error == "command line (serch.trials=4): serch: unknown field 'serch'; did you mean 'search'?"
        (error,) = errors("", "", "search.trials=0")
        assert (
            error == "command line (search.trials=0): search.trials: input should be greater than or equal to 1, got 0"
        )
        (error,) = errors("", "", "arms.one.space.regime.train.learning_rate.low=1.0")
        assert error.startswith("12:7: arms.one.space.regime.train.learning_rate: low must be smaller than high")

    def test_a_corpus_that_a_space_chooses_is_checked_too(self, tmp_path: Path) -> None:
        good = write_corpus(tmp_path / "good", spanish_rows(16))
        space = {"corpus.root": {"kind": "grid", "choices": [str(good), str(tmp_path / "none")]}}
        arm = {"trial": small_trial(good, supervised()["regime"]), "space": space}
        with pytest.raises(SettingsError, match=r"none/manifest\.tsv: no such file"):
            read_spec(write_sweep(tmp_path / "sweep.yaml", arms={"one": arm}))

    def test_choices_that_are_possible_alone_but_not_together_are_an_error_of_the_sweep_file(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        schedule = "regime.train.schedule."
        space = {
            f"{schedule}warmup_fraction": {"kind": "grid", "choices": [0.1, 0.6]},
            f"{schedule}decay_fraction": {"kind": "grid", "choices": [0.1, 0.6]},
        }
        trial = supervised(schedule={"warmup_fraction": 0.1, "decay_fraction": 0.1})
        sweep = write_sweep(tmp_path / "sweep.yaml", arms={"one": {"trial": trial, "space": space}})
        assert main(["plan", str(sweep)]) == 2
        assert "warmup_fraction + decay_fraction must be at most 1" in capsys.readouterr().err

    def test_a_corpus_that_is_not_text_is_an_error_of_the_sweep_file(self, tmp_path: Path) -> None:
        corpus = write_corpus(tmp_path / "corpus", spanish_rows(16))
        (corpus / "manifest.tsv").write_bytes(b"id\tpath\tduration_seconds\ttext\n\xff\xfe\n")
        arm = {"trial": small_trial(corpus, supervised()["regime"])}
        with pytest.raises(SettingsError, match=r"manifest\.tsv"):
            read_spec(write_sweep(tmp_path / "sweep.yaml", arms={"one": arm}))


class TestOverrides:
    def read(self, tmp_path: Path, *overrides: str) -> StudySpec:
        path = tmp_path / "sweep.yaml"
        path.write_text(SWEEP, encoding="utf-8")
        return read_spec(path, overrides)

    def test_a_scalar(self, tmp_path: Path) -> None:
        assert self.read(tmp_path, "search.trials=7").search.trials == 7

    def test_into_a_space_path_with_dots(self, tmp_path: Path) -> None:
        spec = self.read(tmp_path, "arms.one.space.regime.train.learning_rate.low=2e-4")
        (distribution,) = spec.arms["one"].space.values()
        assert distribution.probes() == (2e-4, 1e-2)

    def test_a_section_that_the_file_does_not_have(self, tmp_path: Path) -> None:
        assert self.read(tmp_path, "resources.workers=2").resources.workers == 2

    def test_a_whole_mapping(self, tmp_path: Path) -> None:
        spec = self.read(tmp_path, "search={trials: 2, sampler: {kind: random}}")
        assert (spec.search.trials, spec.search.sampler.kind) == (2, "random")

    def test_what_arms_share(self, tmp_path: Path) -> None:
        spec = self.read(tmp_path, "trial.seed=5")
        assert [spec.trial_config(arm).seed for arm in spec.arms] == [5, 5]


class TestStorage:
    def test_it_is_made_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "sweep.yaml").write_text(SWEEP, encoding="utf-8")
        assert read_spec(Path("sweep.yaml")).storage == tmp_path / "results"

    def test_the_home_folder_is_expanded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "sweep.yaml").write_text(SWEEP, encoding="utf-8")
        assert read_spec(tmp_path / "sweep.yaml", ["storage=~/asr"]).storage == tmp_path / "asr"

    def test_in_a_ray_job_it_must_be_absolute(self, errors: Errors, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")  # as `ray job submit` does
        (error,) = errors("study: small", "storage: here\nstudy: small")
        assert error.startswith("1:1: storage: must be absolute in a Ray job")
        assert "got here" in error

    @pytest.mark.parametrize(
        "override", ["storage=~no-such-user/x", "trial.corpus={kind: folder, root: ~no-such-user/x}"]
    )
    def test_the_home_of_nobody_is_an_error_of_the_sweep_file(self, errors: Errors, override: str) -> None:
        assert errors("", "", override)[0].startswith("command line (")


class TestTrials:
    def test_an_arm_lies_over_what_all_share_and_a_point_over_both(self, tmp_path: Path) -> None:
        spec = spec_of(
            tmp_path,
            trial={"model": {"kind": "compact_cnn_gru", "gru_layers": 3, "cnn_layers": 3}, "seed": 1},
            arms={"one": {"trial": {**supervised(steps=5), "model": {"cnn_layers": 1}}}},
        )
        config = spec.trial_config("one")
        assert (config.model.gru_layers, config.model.cnn_layers, config.seed) == (3, 1, 1)
        config = spec.trial_config("one", {"model.gru_layers": 2, "regime.train.steps": 9}, seed=8)
        assert (config.model.gru_layers, config.model.cnn_layers, config.seed) == (2, 1, 8)
        assert config.regime.kind == "supervised"
        assert config.regime.train.steps == 9

    def test_a_point_may_set_a_part_of_what_the_sweep_file_leaves_at_its_default(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path, arms={"one": {"trial": supervised()}})
        assert spec.trial_config("one", {"corpus.language": "it"}).corpus.model_dump()["language"] == "it"

    def test_a_seed_wins_over_a_searched_one(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path, arms={"one": {"trial": supervised()}})
        assert spec.trial_config("one", {"seed": 3}, seed=4).seed == 4

    def test_an_arm_may_choose_another_regime_than_what_all_share(self, tmp_path: Path) -> None:
        other = {"regime": {"kind": "bl_just", "joint": {"steps": 3}, "finetune": None}}
        spec = spec_of(tmp_path, trial=supervised(steps=5), arms={"same": {}, "other": {"trial": other}})
        assert [spec.trial_config(arm).regime.kind for arm in spec.arms] == ["supervised", "bl_just"]

    def test_an_impossible_point_is_refused(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path, arms={"one": {"trial": supervised()}})
        with pytest.raises(ValidationError, match="greater than or equal to 1"):
            spec.trial_config("one", {"regime.train.steps": 0})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["x", "y"]),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3) | st.lists(inner, max_size=2),
    max_leaves=6,
)
TREES = st.dictionaries(st.sampled_from("abc"), JSON, max_size=3)


class TestMerge:
    @pytest.mark.parametrize(
        ("base", "over", "merged"),
        [
            ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
            ({"a": 1}, {"a": 2}, {"a": 2}),
            ({"a": {"x": 1, "y": 1}}, {"a": {"y": 2}}, {"a": {"x": 1, "y": 2}}),
            ({"a": {"x": 1}}, {"a": 2}, {"a": 2}),
            ({"a": 2}, {"a": {"x": 1}}, {"a": {"x": 1}}),
            ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
            ({"a": {"x": 1}}, {"a": None}, {"a": None}),
            # a mapping of another kind replaces, one of the same kind or of none is laid over
            ({"a": {"kind": "p", "x": 1}}, {"a": {"kind": "q", "y": 2}}, {"a": {"kind": "q", "y": 2}}),
            ({"a": {"kind": "p", "x": 1}}, {"a": {"kind": "p", "y": 2}}, {"a": {"kind": "p", "x": 1, "y": 2}}),
            ({"a": {"kind": "p", "x": 1}}, {"a": {"y": 2}}, {"a": {"kind": "p", "x": 1, "y": 2}}),
            ({"a": {"x": 1}}, {"a": {"kind": "q"}}, {"a": {"x": 1, "kind": "q"}}),
            (
                {"r": {"l": {"kind": "p", "x": 1}, "s": 1}},
                {"r": {"l": {"kind": "q"}}},
                {"r": {"l": {"kind": "q"}, "s": 1}},
            ),
        ],
    )
    def test_mapping_by_mapping(self, base: dict[str, Any], over: dict[str, Any], merged: dict[str, Any]) -> None:
        assert merge(base, over) == merged

    @given(TREES, TREES)
    def test_neither_side_is_changed(self, base: dict[str, Any], over: dict[str, Any]) -> None:
        before = copy.deepcopy((base, over))
        merge(base, over)
        assert (base, over) == before

    @given(TREES, TREES)
    def test_it_is_idempotent_and_nothing_changes_nothing(self, a: dict[str, Any], b: dict[str, Any]) -> None:
        assert merge(a, {}) == a == merge({}, a)
        assert merge(a, a) == a
        assert merge(merge(a, b), b) == merge(a, b)

    def test_nested(self) -> None:
        assert nested("a.b.c", [1]) == {"a": {"b": {"c": [1]}}}
        assert nested("a", 1) == {"a": 1}


VALUES = st.sampled_from(
    [None, True, False, 0, 1, 2, -1, 0.5, 1e300, "", "x", "tpe", "grid", "nan", [], [1], ["es"], {}, {"kind": "grid"}]
)
LINES = QUICKSTART.read_text(encoding="utf-8").splitlines()


def attempt(path: Path) -> list[str]:
    """The errors of a file that may be valid; a valid one is planned. Any exception but SettingsError comes through."""
    try:
        make_plan(read_spec(path))
    except SettingsError as error:
        return error.errors or ["no error at all"]
    return []


def locations(tree: Any, location: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [location, *(deeper for key, value in inner for deeper in locations(value, (*location, key)))]


class TestNothingButSettingsErrors:
    @pytest.fixture(scope="class")
    def path(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("fuzz") / "sweep.yaml"

    @settings(max_examples=150, deadline=None)
    @given(st.text(st.characters(codec="utf-8")))
    def test_arbitrary_text(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8", newline="")
        assert all(str(path) in error for error in attempt(path))

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_quickstart_with_lines_cut_doubled_moved_and_typed_over(self, path: Path, data: st.DataObject) -> None:
        lines = list(LINES)
        for _ in range(data.draw(st.integers(1, 3))):
            index = data.draw(st.integers(0, len(lines) - 1))
            match data.draw(st.sampled_from(["cut", "double", "indent", "type"])):
                case "cut":
                    del lines[index]
                case "double":
                    lines.insert(index, lines[index])
                case "indent":
                    lines[index] = data.draw(st.sampled_from(["  ", " ", "\t", "- ", "# "])) + lines[index]
                case "type":
                    at = data.draw(st.integers(0, len(lines[index])))
                    typed = data.draw(st.sampled_from([*"{}[]:,&*!|>%@`'\"#?-~ x1", "!!int "]))
                    lines[index] = lines[index][:at] + typed + lines[index][at + data.draw(st.integers(0, 3)) :]
        path.write_text("\n".join(lines), encoding="utf-8")
        assert all(str(path) in error for error in attempt(path))

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_quickstart_with_values_replaced_and_keys_renamed(self, path: Path, data: st.DataObject) -> None:
        tree = parse_value("\n".join(LINES))
        for _ in range(data.draw(st.integers(1, 3))):
            *outer, last = data.draw(st.sampled_from(locations(tree)[1:]))
            target = tree
            for key in outer:
                target = target[key]
            if isinstance(target, dict) and data.draw(st.booleans()):
                renamed = data.draw(st.sampled_from(["x", "kind", "trial", "space", "when", "seed", "regime.kind"]))
                target[renamed] = target.pop(last)
            else:
                target[last] = copy.deepcopy(data.draw(VALUES))
        path.write_text(json.dumps(tree), encoding="utf-8")
        assert all(str(path) in error for error in attempt(path))

    @pytest.mark.parametrize("name", HOSTILE_TEXTS)
    def test_hostile_text(self, path: Path, name: str) -> None:
        path.write_text(HOSTILE_TEXTS[name], encoding="utf-8")
        assert attempt(path)
