"""Reading sweep files: what YAML means here, where every value stands, overrides, and nothing but SettingsError."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.study.hostile import HOSTILE_TEXTS
from trainables.settings_file import SettingsError, SettingsFile, did_you_mean, parse_value, read_settings_file

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_text(text: str) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


def errors_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read_settings_file(path, overrides)
    return caught.value.errors


class TestScalars:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("1e-4", 1e-4),
            ("5E3", 5e3),
            ("1.", 1.0),
            (".5", 0.5),
            ("-1.5e+2", -150.0),
            ("12", 12),
            ("012", 12),
            ("0o14", "0o14"),
            ("+3", 3),
            ("-7", -7),
            ("1_000", "1_000"),
            ("1:30", "1:30"),
            ("true", True),
            ("False", False),
            ("no", "no"),
            ("on", "on"),
            ("yes", "yes"),
            ("y", "y"),
            ("null", None),
            ("~", None),
            ("", None),
            ("2024-01-02", "2024-01-02"),
            ("'1e-4'", "1e-4"),
            ('"true"', "true"),
            ("nullable", "nullable"),
            ("1.2.3", "1.2.3"),
            ("[1, no, 1e-3]", [1, "no", 1e-3]),
            ("{a: {b: on}}", {"a": {"b": "on"}}),
        ],
    )
    def test_yaml_1_2_scalars(self, write: Write, text: str, value: Any) -> None:
        for read in (parse_value(text), read_settings_file(write(f"x: {text}\n")).data["x"]):
            assert read == value
            assert type(read) is type(value)

    @given(st.floats(allow_nan=False, allow_infinity=False))
    def test_every_float_that_python_writes_is_read_back(self, number: float) -> None:
        assert parse_value(repr(number)) == number
        assert isinstance(parse_value(repr(number)), float)


class TestPlaces:
    def test_every_key_and_every_item_has_its_line_and_column(self, write: Write) -> None:
        path = write("a: 1\nb:\n  c:   [x, y]\n  d: {e: 1, f: 2}\n")
        file = read_settings_file(path)
        places = {
            (): "1:1",
            ("a",): "1:1",
            ("b",): "2:1",
            ("b", "c"): "3:3",
            ("b", "c", 0): "3:9",
            ("b", "c", 1): "3:12",
            ("b", "d"): "4:3",
            ("b", "d", "e"): "4:7",
            ("b", "d", "f"): "4:13",
        }
        assert dict(file.places) == {location: f"{path}:{place}" for location, place in places.items()}

    def test_what_is_not_there_stands_at_the_nearest_thing_around_it(self, write: Write) -> None:
        path = write("a: 1\nb:\n  c: 2\n")
        file = read_settings_file(path)
        assert file.place(("b", "missing", "deeper")) == f"{path}:2:1"
        assert file.place(("missing",)) == f"{path}:1:1"
        assert file.contains(("b", "c"))
        assert not file.contains(("b", "missing"))

    def test_an_error_names_place_and_path(self, write: Write) -> None:
        path = write("b:\n  c: 2\n")
        assert read_settings_file(path).error(("b", "c"), "too small") == f"{path}:2:3: b.c: too small"


class TestMalformedFiles:
    @pytest.mark.parametrize(
        ("text", "place", "message"),
        [
            ("a: 1\nb: [1, 2\nc: 3\n", "3:2", "not valid YAML: "),
            ("a: 1\n  b: 2\n", "2:4", "not valid YAML: mapping values are not allowed here"),
            ("a: 1\n\tb: 2\n", "2:1", "not valid YAML: "),
            ("a: 'x\n", "2:1", "not valid YAML: found unexpected end of stream"),
            ("a: 1\n---\nb: 2\n", "2:1", "not valid YAML: but found another document"),
            ("a: !secret 1\n", "1:4", "not valid YAML: could not determine a constructor"),
            ("a: &x 1\nb: *x\n", "2:4", "aliases are not supported; put what arms share under `trial:`"),
            ("a: &x {k: 1}\nb: {<<: *x}\n", "2:9", "aliases are not supported"),
            ("a: 1\nb: 2\na: 3\n", "3:1", "'a' occurs twice in one mapping"),
            ("b:\n  c: 1\n  d: 2\n  c: 1\n", "4:3", "'c' occurs twice in one mapping"),
            ("a: 1\n3: 2\n", "2:1", "a key must be text, got 3"),
            ("a: 1\ntrue: 2\n", "2:1", "a key must be text, got True"),
            ("a: 1\n? [x, y]\n: 2\n", "2:3", "a key must be text, got "),
            ("", "1:1", "must be a mapping, as in a sweep file of `study`, `question` and `arms`"),
            ("# only a comment\n", "1:1", "must be a mapping, as in a sweep file"),
            ("- a\n- b\n", "1:1", "must be a mapping, as in a sweep file"),
            ("just text\n", "1:1", "must be a mapping, as in a sweep file"),
        ],
    )
    def test_it_is_refused_where_it_is_wrong(self, write: Write, text: str, place: str, message: str) -> None:
        path = write(text)
        (error,) = errors_of(path)
        assert error.startswith(f"{path}:{place}: ")
        assert message in error

    def test_all_duplicates_are_named_at_once(self, write: Write) -> None:
        path = write("a: 1\na: 2\nb: {c: 1, c: 2}\n4: 5\n")
        assert [error.removeprefix(f"{path}:").split(": ")[0] for error in errors_of(path)] == ["2:1", "3:11", "4:1"]

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        (error,) = errors_of(tmp_path / "none.yaml")
        assert error.startswith(f"{tmp_path / 'none.yaml'}: cannot be read: ")

    def test_a_folder_is_no_sweep_file(self, tmp_path: Path) -> None:
        (error,) = errors_of(tmp_path)
        assert error.startswith(f"{tmp_path}: cannot be read: ")

    def test_a_file_that_is_not_utf_8_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "latin.yaml"
        path.write_bytes("question: für\n".encode("latin-1"))
        (error,) = errors_of(path)
        assert error.startswith(f"{path}: cannot be read: ")

    @pytest.mark.parametrize("name", HOSTILE_TEXTS)
    def test_hostile_content_is_refused_with_its_file_named(self, write: Write, name: str) -> None:
        path = write(HOSTILE_TEXTS[name])
        assert str(path) in errors_of(path)[0]

    @pytest.mark.parametrize(
        "text", ["!!int x", "!!float x", "!!bool maybe", "!!timestamp x", "9" * 5_000, "[" * 5_000]
    )
    def test_a_hostile_override_is_refused_with_its_words_named(self, write: Write, text: str) -> None:
        assert f"command line (a={text})" in errors_of(write("a: 1\n"), f"a={text}")[0]

    def test_every_error_is_one_line(self, write: Write) -> None:
        for text in ("a: [1\nb: 2\n", "a: &x 1\nb: *x\n", "a: !secret 1\n", "a: b: c\n"):
            assert all("\n" not in error for error in errors_of(write(text)))
        assert all("\n" not in error for error in errors_of(write("a: 1\n"), "a=\x07"))


class TestOverrides:
    SWEEP = """\
search:
  trials: 10
arms:
  one:
    space:
      regime.finetune.rate: {kind: uniform, low: 1, high: 2}
"""

    def read(self, write: Write, *overrides: str) -> SettingsFile:
        return read_settings_file(write(self.SWEEP), overrides)

    def test_a_value_is_replaced_and_typed_as_in_the_file(self, write: Write) -> None:
        assert self.read(write, "search.trials=4").data["search"] == {"trials": 4}
        assert self.read(write, "search.trials=1e-4").data["search"] == {"trials": 1e-4}
        assert self.read(write, "search=[no, 1]").data["search"] == ["no", 1]

    def test_the_path_of_a_space_may_hold_dots(self, write: Write) -> None:
        file = self.read(write, "arms.one.space.regime.finetune.rate.low=0.5")
        assert file.data["arms"]["one"]["space"] == {"regime.finetune.rate": {"kind": "uniform", "low": 0.5, "high": 2}}

    def test_the_longest_key_that_is_there_wins(self, write: Write) -> None:
        path = write("s: {a: {b: {c: 1}}, a.b: {c: 2}}\n")
        assert read_settings_file(path, ["s.a.b.c=3"]).data == {"s": {"a": {"b": {"c": 1}}, "a.b": {"c": 3}}}

    def test_missing_sections_are_made(self, write: Write) -> None:
        file = self.read(write, "resources.deep.workers=2")
        assert file.data["resources"] == {"deep": {"workers": 2}}
        for location in (("resources",), ("resources", "deep"), ("resources", "deep", "workers")):
            assert file.place(location) == "command line (resources.deep.workers=2)"

    def test_the_value_may_hold_an_equals_sign(self, write: Write) -> None:
        assert self.read(write, "question=a=b").data["question"] == "a=b"

    def test_an_empty_value_is_null(self, write: Write) -> None:
        assert self.read(write, "search.trials=").data["search"] == {"trials": None}

    def test_later_ones_win(self, write: Write) -> None:
        file = self.read(write, "search.trials=4", "search.trials=5")
        assert file.data["search"] == {"trials": 5}
        assert file.place(("search", "trials")) == "command line (search.trials=5)"

    def test_places_inside_what_was_replaced_are_forgotten(self, write: Write) -> None:
        file = self.read(write, "search={sampler: {kind: tpe}}")
        assert file.place(("search", "trials")) == "command line (search={sampler: {kind: tpe}})"
        assert not file.contains(("search", "trials"))

    def test_what_was_not_overridden_keeps_its_place(self, write: Write) -> None:
        path = write(self.SWEEP)
        assert read_settings_file(path, ["search.trials=4"]).place(("search",)) == f"{path}:1:1"

    @pytest.mark.parametrize("override", ["search.trials", "=4", "", "search trials"])
    def test_one_without_path_or_value_is_refused(self, write: Write, override: str) -> None:
        (error,) = errors_of(write(self.SWEEP), override)
        assert error.startswith(f"command line ({override}): an override is written path=value")

    def test_one_into_a_scalar_is_refused(self, write: Write) -> None:
        (error,) = errors_of(write(self.SWEEP), "search.trials.more=1")
        assert error == "command line (search.trials.more=1): search.trials is not a mapping and has no 'more'"

    def test_one_with_invalid_yaml_is_refused(self, write: Write) -> None:
        (error,) = errors_of(write(self.SWEEP), "search.trials=[1")
        assert error.startswith("command line (search.trials=[1): '[1' is not valid YAML: ")

    def test_all_malformed_ones_are_named_at_once(self, write: Write) -> None:
        assert len(errors_of(write(self.SWEEP), "a", "search.trials.x=1", "b=[", "search.trials=3")) == 3


class TestSuggestions:
    def test_a_near_word_is_suggested(self) -> None:
        assert did_you_mean("trails", ["trials", "metric"]) == "; did you mean 'trials'?"

    def test_far_words_are_listed_in_order(self) -> None:
        assert did_you_mean("zzz", ["trials", "metric"]) == "; known: metric, trials"


PRINTABLE = st.characters(codec="utf-8", exclude_categories=("Cs",))
WORDS = st.text(st.characters(categories=("L", "N", "P", "S"), max_codepoint=0xFFFF))
YAML_PIECES = st.sampled_from(
    [
        *"{}[]:,&*!|>%@`'\"#?-\n\t ~",
        "a",
        "1",
        "1e5",
        "---",
        "...",
        "<<",
        "!!int",
        "!!set",
        "&x",
        "*x",
        "\x00",
        "\x85",
        "\ufeff",
    ]
)


def attempt(path: Path, *overrides: str) -> list[str]:
    """The errors of a file that may be valid. Any exception but SettingsError comes through."""
    try:
        read_settings_file(path, overrides)
    except SettingsError as error:
        return error.errors or ["no error at all"]
    return []


class TestNothingButSettingsErrors:
    @pytest.fixture(scope="class")
    def path(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("fuzz") / "sweep.yaml"

    @settings(max_examples=300, deadline=None)
    @given(text=st.text(PRINTABLE) | st.lists(YAML_PIECES).map("".join))
    @example(text="a: \x00")
    def test_arbitrary_text(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8", newline="")
        assert all(line.startswith(f"{path}:") for line in attempt(path))

    @settings(max_examples=200, deadline=None)
    @given(data=st.binary())
    def test_arbitrary_bytes(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)
        assert all(line.startswith(f"{path}:") for line in attempt(path))

    @settings(max_examples=300, deadline=None)
    @given(override=st.text(PRINTABLE) | st.lists(YAML_PIECES | st.sampled_from(["s", "t", ".", "="])).map("".join))
    @example(override="s=!!int")
    def test_arbitrary_overrides(self, path: Path, override: str) -> None:
        path.write_text("s: {t: 1, u.v: [2]}\n", encoding="utf-8")
        assert all(line.startswith("command line (") for line in attempt(path, override))

    JSON = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
        max_leaves=8,
    )

    @settings(max_examples=200, deadline=None)
    @given(data=st.dictionaries(WORDS, JSON, max_size=4))
    def test_json_is_read_as_it_was_written(self, path: Path, data: dict[str, Any]) -> None:
        path.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")
        assert read_settings_file(path).data == data
