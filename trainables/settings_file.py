"""Reading a file of settings: YAML with the place of every value, and errors that name file, line and column."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

Location = tuple[str | int, ...]


class SettingsError(ValueError):
    """Settings that cannot be used; the message has a line for each error."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = list(errors)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `1e-4` is a number and `no` a string (a language code). Aliases are refused."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML's own way)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem="aliases are not supported; put what arms share under `trial:`", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.I), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|)$", re.I), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)
_TAG = "tag:yaml.org,2002:"
_Loader.yaml_constructors = {  # nothing but what JSON has: no dates, sets or binary data
    _TAG + "str": lambda _, node: node.value,
    _TAG + "int": lambda _, node: int(node.value),
    _TAG + "float": lambda _, node: float(node.value),
    _TAG + "bool": lambda _, node: {"true": True, "false": False}[node.value.lower()],
    _TAG + "null": lambda _, node: None,
    None: yaml.SafeLoader.construct_undefined,
}
_MALFORMED = (yaml.YAMLError, ValueError, KeyError, RecursionError)  # what reading text that is no settings can raise


def parse_value(
    text: str, name: str = "", places: dict[Location, str] | None = None, errors: list[str] | None = None
) -> Any:
    """The value that YAML text stands for: `"4"` is 4, `"[1, 2]"` a list. Raises one of `_MALFORMED`.

    Adds the place of every part to `places`, and what is wrong in a mapping to `errors`.
    """
    places, errors = {} if places is None else places, [] if errors is None else errors
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return _construct(loader, node, (), name, places, errors) if node else None
    finally:
        loader.dispose()


@dataclass(frozen=True)
class SettingsFile:
    """The raw content of a file of settings, and where each value stands."""

    name: str
    data: Any
    places: Mapping[Location, str]

    def place(self, location: Location) -> str:
        """`file:line:column` of the value, or of the nearest thing around it."""
        for end in range(len(location), -1, -1):
            if location[:end] in self.places:
                return self.places[location[:end]]
        return self.name

    def error(self, location: Location, message: str) -> str:
        shown = ".".join(map(str, location))
        return f"{self.place(location)}: {shown + ': ' if shown else ''}{message}"

    def contains(self, location: Location) -> bool:
        return location in self.places


def read_settings_file(path: Path, overrides: Iterable[str] = ()) -> SettingsFile:
    """Read the file and apply `path=value` overrides. Raises SettingsError when one of them is malformed."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{path}: cannot be read: {error}"]) from error
    places: dict[Location, str] = {}
    errors: list[str] = []
    try:
        data = parse_value(text, str(path), places, errors)
    except _MALFORMED as error:
        raise SettingsError([_yaml_error(str(path), error)]) from error
    if not isinstance(data, dict):
        raise SettingsError(
            [*errors, f"{path}:1:1: must be a mapping, as in a sweep file of `study`, `question` and `arms`"]
        )
    if errors:
        raise SettingsError(errors)
    for override in overrides:
        _apply(override, data, places, errors)
    if errors:
        raise SettingsError(errors)
    return SettingsFile(str(path), data, places)


def _construct(
    loader: _Loader, node: yaml.Node, location: Location, name: str, places: dict[Location, str], errors: list[str]
) -> Any:
    places[location] = f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
    if isinstance(node, yaml.CollectionNode) and node.tag not in (_TAG + "seq", _TAG + "map"):
        errors.append(f"{places[location]}: has the tag {node.tag!r}; leave it out: lists and mappings need none")
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, n, (*location, i), name, places, errors) for i, n in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True) if isinstance(key_node, yaml.ScalarNode) else None
        place = f"{name}:{key_node.start_mark.line + 1}:{key_node.start_mark.column + 1}"
        if not isinstance(key, str):
            errors.append(f"{place}: a key must be text, got {key!r}")
            continue
        if key in mapping:
            errors.append(f"{place}: {key!r} occurs twice in one mapping")
        mapping[key] = _construct(loader, value_node, (*location, key), name, places, errors)
        places[(*location, key)] = place
    return mapping


def _yaml_error(name: str, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    return f"{place}: not valid YAML: {_reason(error)}"


def _reason(error: Exception) -> str:
    """Why text cannot be read, on one line."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return " ".join(str(getattr(error, "problem", None) or error).split())


def _apply(override: str, data: dict[str, Any], places: dict[Location, str], errors: list[str]) -> None:
    place = f"command line ({override})"
    path, equals, text = override.partition("=")
    if not equals or not path:
        errors.append(f"{place}: an override is written path=value, e.g. search.trials=4")
        return
    target: Any = data
    location: list[str] = []
    rest = path
    while True:
        # A key may itself hold dots (a path of a search space): the longest key that is there wins.
        keys = [key for key in target if rest == key or rest.startswith(key + ".")]
        key = max(keys, key=len) if keys else rest.partition(".")[0]
        location.append(key)
        rest = rest[len(key) + 1 :]
        if not rest:
            break
        if key not in target:
            places[tuple(location)] = place
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            errors.append(f"{place}: {'.'.join(location)} is not a mapping and has no {rest!r}")
            return
    try:
        target[key] = parse_value(text, place, errors=errors)
    except _MALFORMED as error:
        errors.append(f"{place}: {text!r} is not valid YAML: {_reason(error)}")
        return
    for known in [known for known in places if known[: len(location)] == tuple(location)]:
        del places[known]
    places[tuple(location)] = place


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the list of what is known."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"


def explain(error: ValidationError, model: type[BaseModel]) -> list[tuple[Location, str]]:
    """Each error of pydantic as (location in the file, message naming the value, the rule and the fix)."""
    explained: list[tuple[Location, str]] = []
    for item in error.errors():
        location = _in_file(model, item["loc"])
        value = item["input"]
        shown = f", got {value!r}" if not isinstance(value, dict | list | BaseModel) else ""
        if item["type"] == "extra_forbidden":
            unknown = str(item["loc"][-1])
            known = {name for m in _models_at(model, item["loc"][:-1]) for name in m.model_fields}
            explained.append((location, f"unknown field {unknown!r}{did_you_mean(unknown, known)}"))
        elif item["type"] == "missing":
            explained.append((location, "required, and missing"))
        elif item["type"] == "union_tag_invalid":
            tags = item["ctx"]["expected_tags"].replace("'", "").split(", ")
            tag = item["ctx"]["tag"]
            explained.append(((*location, "kind"), f"unknown kind {tag!r}{did_you_mean(tag, tags)}"))
        elif item["type"] == "union_tag_not_found":
            explained.append((location, "needs a `kind`"))
        elif item["type"] == "value_error":
            explained.append((location, item["msg"].removeprefix("Value error, ")))
        else:
            explained.append((location, item["msg"][0].lower() + item["msg"][1:] + shown))
    return explained


def _variants(annotation: Any) -> list[Any]:
    """The members of a union, or of what `Annotated` wraps."""
    if isinstance(annotation, type) or typing.get_origin(annotation) in (dict, list, tuple):
        return [annotation]
    return [variant for argument in typing.get_args(annotation) for variant in _variants(argument)]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _step(annotations: list[Any], part: str | int) -> tuple[list[Any], bool]:
    """The types one part of a pydantic location further, and whether the part also stands in the file.

    The tag of a union is a part of pydantic's location that the file does not have.
    """
    models = [a for a in annotations if _is_model(a)]
    fields = [m.model_fields[part] for m in models if isinstance(part, str) and part in m.model_fields]
    if fields:
        return [variant for field in fields for variant in _variants(field.annotation)], True
    tagged = [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == part]
    if tagged:
        return tagged, False
    containers = [a for a in annotations if typing.get_origin(a) in (dict, list, tuple)]
    elements = [typing.get_args(a)[-1 if typing.get_origin(a) is dict else 0] for a in containers]
    return [variant for element in elements for variant in _variants(element)], True


def _models_at(model: type[BaseModel], location: Sequence[str | int]) -> list[type[BaseModel]]:
    annotations: list[Any] = [model]
    for part in location:
        annotations, _ = _step(annotations, part)
    return [annotation for annotation in annotations if _is_model(annotation)]


def _in_file(model: type[BaseModel], location: Sequence[str | int]) -> Location:
    """pydantic's location without the tags of unions."""
    annotations: list[Any] = [model]
    in_file: list[str | int] = []
    for part in location:
        annotations, stands = _step(annotations, part)
        if stands:
            in_file.append(part)
    return tuple(in_file)
