"""The base of every typed setting: frozen, closed to unknown keys, and free of torch.

Settings stand in a `config.py` beside the parts that they configure, so that `study plan` and the
errors of a sweep file answer without importing torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Preset = TypeVar("Preset")


class Config(BaseModel):
    """Frozen and closed: an unknown key is an error, never silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def with_(self, **changes: Any) -> Self:
        """A copy with the given fields replaced, validated again (`model_copy` does not validate)."""
        return type(self).model_validate({**dict(self), **changes})


def cosmetic(default: Any, *, description: str, **constraints: Any) -> Any:
    """A field that cannot change a result and therefore stays out of the fingerprint of a stage."""
    return Field(default, description=description, json_schema_extra={"cosmetic": True}, **constraints)


def default_kind(kind: str) -> BeforeValidator:
    """For a union by `kind`: settings without one are of this kind, and a word alone is a kind."""

    def with_kind(given: Any) -> Any:
        if isinstance(given, str):
            return {"kind": given}
        return {"kind": kind, **given} if isinstance(given, Mapping) else given

    return BeforeValidator(with_kind)


def preset_named(presets: Mapping[str, Preset], name: Any, of: str = "") -> Preset:
    """The preset of this name. Raises ValueError that says which is near, or which there are."""
    if isinstance(name, str) and name in presets:
        return presets[name]
    near = difflib.get_close_matches(str(name), presets, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the presets are {', '.join(presets)}"
    raise ValueError(f"no preset {name!r}{of}; {hint}")


class Progress(NamedTuple):
    """How far a stage is: `step` of its `steps` updates are done."""

    step: int
    steps: int

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return self.step / self.steps


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, mapping by mapping. A mapping of another `kind` replaces the one below it.

    The result has parts of both in it: none of the three is to be changed afterwards.
    """
    if "kind" in over and "kind" in base and over["kind"] != base["kind"]:
        return dict(over)
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
