"""Small random changes of valid input, as hypothesis strategies."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Tree = Any  # what JSON has
Place = tuple[str | int, ...]

ODD_TEXTS = st.sampled_from(
    [
        *("", " ", "\0", "a\0b", "../../etc/passwd", "/etc/passwd", "~", "~nobody-of-this-name", "x" * 5_000, "\u202e"),
        *(
            "nan",
            "inf",
            "-inf",
            "1e999",
            "9" * 400,
            "-1",
            "0",
            "true",
            "null",
            "<script>",
            "{}",
            "%s",
            "\ud7ff\U0001f600",
        ),
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**30, -(10**30), 2**63, 1e308, -1e308, 1e-320, 0.5]),
    ODD_TEXTS,
    st.text(max_size=10),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_TEXTS | st.text(max_size=5), inner, max_size=3),
)


def places(tree: Tree, here: Place = ()) -> Iterator[Place]:
    """Every node below the top."""
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*here, key)
        yield from places(value, (*here, key))


@contextmanager
def may_be_refused(kind: type[Exception], *places: Path) -> Iterator[None]:
    """The block may raise such an error, which has to name one of the places."""
    try:
        yield
    except kind as error:
        if not any(str(place) in str(error) for place in places):
            raise AssertionError(f"the error names none of {', '.join(map(str, places))}") from error


@st.composite
def changed_trees(draw: st.DrawFn, tree: Tree) -> Tree:
    """The tree with one or two nodes deleted, repeated, renamed, exchanged or replaced by something odd."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 2))):
        found = list(places(tree))
        if not found:
            break
        *outer, key = draw(st.sampled_from(found))
        parent = tree
        for step in outer:
            parent = parent[step]
        change = draw(st.sampled_from(["delete", *["replace"] * 4, "wrap", "move", "rename", "another"]))
        if change == "delete":
            del parent[key]
        elif change == "wrap":
            parent[key] = [parent[key]] * draw(st.integers(1, 3))
        elif change == "another":
            *steps, last = draw(st.sampled_from(found))
            source = tree
            for step in (*steps, last):
                source = source[step] if not isinstance(source, str) else source
            parent[key] = copy.deepcopy(source)
        elif change == "rename" and isinstance(parent, dict):
            parent[draw(ODD_TEXTS | st.text(max_size=5))] = parent.pop(key)
        elif change == "move" and isinstance(parent, list):
            parent.append(parent[key])
        else:
            parent[key] = draw(SCALARS | TREES)
    return tree


@st.composite
def changed_bytes(draw: st.DrawFn, content: bytes, first: int = 0, last: int | None = None) -> bytes:
    """The content with one to four stretches deleted, repeated, overwritten or cut off, between two places."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        end = min(len(changed), len(content) if last is None else last)
        start = draw(st.integers(min(first, end), end))
        length = draw(st.sampled_from([1, 2, 4, 8, 64]))
        change = draw(st.sampled_from(["delete", "repeat", "overwrite", "insert", "cut"]))
        if change == "delete":
            del changed[start : start + length]
        elif change == "repeat":
            changed[start:start] = changed[start : start + length]
        elif change == "cut":
            del changed[start:]
        else:
            some = draw(
                st.binary(min_size=1, max_size=length)
                | st.sampled_from(
                    [b"\xff" * length, b"\0" * length, b"\t", b"\n", b"\r", b'"', b"{", b"- ", b"../", b"-1"]
                )
            )
            changed[start : start + (len(some) if change == "overwrite" else 0)] = some
    return bytes(changed)
