"""The benchmark's command works, on as little as possible; what it measures is not tested."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch

from tests.benchmarks import decoding
from trainables.data.config import PromptsConfig
from trainables.data.corpus import read_corpus


@pytest.mark.slow
def test_it_prints_error_rates_and_speeds(capfd: pytest.CaptureFixture[str]) -> None:
    decoding.main(["--steps", "1", "--seconds", "60", "--rounds", "1", "--beam", "2", "--processes", "1", "2"])
    lines = capfd.readouterr().out.splitlines()
    decoders = ["ours", "pyctcdecode"] if importlib.util.find_spec("pyctcdecode") else ["ours"]
    rates = [line for line in lines if line.startswith("WER of ")]
    assert [line.split(", ")[1].split(":")[0] for line in rates] == ["greedy", *decoders]
    assert all(line.endswith("%") for line in rates)
    speeds = [line for line in lines if line.startswith("seconds of audio a second")]
    assert ["1 process" in speeds[0], "2 process" in speeds[1], len(speeds)] == [True, True, 2]
    assert all(name in line for name in decoders for line in speeds)
    assert (len(decoders) > 1) == any("ratio" in line for line in speeds)
    assert (len(decoders) > 1) != any("pyctcdecode is not there" in line for line in lines)


def test_audio_is_repeated_until_it_is_long_enough() -> None:
    utterances = list(read_corpus(PromptsConfig()).dev[:3])
    scores = [torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1) * 2]
    durations = [u.duration_seconds for u in utterances]
    found, seconds = decoding.repeated(utterances, scores, sum(durations) + durations[0])
    assert [int(scores_TV.item()) for scores_TV in found] == [0, 1, 2, 0]
    assert seconds == pytest.approx(sum(durations) + durations[0])


def test_decoders_take_turns() -> None:
    calls: list[str] = []

    def decoder(name: str) -> decoding.Decode:
        def decode(scores: object, processes: int) -> list[str]:
            calls.append(f"{name} {processes}")
            return []

        return decode

    found = decoding.seconds_of({"one": decoder("one"), "two": decoder("two")}, [], 4, rounds=3)
    assert calls == ["one 4", "two 4"] * 3
    assert set(found) == {"one", "two"}
    assert all(0 <= seconds < math.inf for seconds in found.values())
