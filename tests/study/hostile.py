"""Files that are wrong in ways in which libraries raise their own errors."""

from __future__ import annotations

HOSTILE_TEXTS = {
    "nul": "study: \x00\n",
    "control character": "study: \x07\n",
    "tagged integer": "study: !!int abc\n",
    "tagged float": "study: !!float abc\n",
    "tagged boolean": "study: !!bool maybe\n",
    "tagged date": "study: !!timestamp tomorrow\n",
    "tagged key": "!!int abc: 1\n",
    "huge integer": f"study: {'9' * 5_000}\n",
    "deep nesting": f"study: {'[' * 1_000}{']' * 1_000}\n",
}
