"""The benchmark over public networks: what it makes of networks that answer, refuse, crash and hang."""

import pandas as pd
import torch
from torch import nn

from benchmarks import zoo

TINY = zoo.cases()["diffusers", "AutoencoderTiny"]


def rows(*cases: zoo.Case, seconds: float = 300) -> list[zoo.Row]:
    return list(zoo.rows_of(list(cases), 1, seconds, [], 10, True))


def test_names_of_networks_are_their_own_and_calls_are_whole() -> None:
    assert len(zoo.cases()) >= 210
    for (name, _), case in zoo.cases().items():
        assert name == case.zoo and case.call.count("(") == case.call.count(")") > 0 and "\n" not in case.call
        assert len(case.inputs()) == 1 + (case.input[-1] == "t")


def test_a_crash_costs_one_row_and_so_does_a_refusal() -> None:
    dies = TINY._replace(module="os", name="dies", call="_exit(3)")
    flat = TINY._replace(module="torch.nn", name="flat", call="Conv2d(3, 8, 3, padding=1)")
    first, second, third = rows(dies, flat, TINY)
    assert first["error"] == "crash: the process ended with 3" and "strides" not in first
    assert (second["strides"], third["strides"]) == (False, True)
    assert second["student_x2"].startswith("ValueError: ") and "taps_x2" not in second
    assert third["student_x2"] == third["student_x4"] == "ok" and third["taps_x2"] > 0
    assert third["peak_bytes_x2"] < third["peak_bytes"] <= third["eager_bytes"]


def test_a_hang_is_ended() -> None:
    (row,) = rows(TINY._replace(module="time", name="hangs", call="sleep(999)"), seconds=0.5)
    assert row["error"] == "crash: it takes more than 0.5 s"


def test_rates_count_students_of_what_strides_and_steps_of_what_was_trained() -> None:
    ok = {"error": "", "strides": "True", "peak_bytes": "8", "eager_bytes": "9", "measured_bytes": "9"}
    student = {"student_x2": "ok", "peak_bytes_x2": "8", "taps_x2": "2", "step_x2": "crash: RuntimeError: no"}
    alone = student | {"taps_x2": zoo.NO_MAP, "step_x2": "ok"}
    known = [ok | student, ok | alone, ok | {"student_x2": "ValueError: no"}, ok | {"strides": "False"}]
    known.append({"error": "crash: no"})
    frame = pd.DataFrame([dict.fromkeys(zoo.COLUMNS, "") | {"name": "a"} | row for row in known])
    found = {line[:24].strip(): line[24:].split()[:3:2] for line in zoo.rates(frame)}
    assert found["networks that run"] == ["4", "5"] and found["eager = measured"] == ["4", "4"]
    assert found["x2: students"] == ["2", "3"] and found["x2: with less peak"] == ["0", "2"]
    assert found["x2: no map of equal size"] == ["1", "2"] and found["x2: with taps"] == ["1", "1"]
    assert found["x2: train a step"] == ["0", "1"] and found["x2: a step by KD alone"] == ["1", "1"]
    assert found["crash"] == ["2", "5"]


def test_sizes_of_maps_are_those_of_tokens_too() -> None:
    layers = nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Linear(4, 4)
    x = (torch.zeros(1, 3, 8, 8),)
    assert zoo.map_sizes(nn.Sequential(*layers), x) == {(2, 2)}
    assert zoo.map_sizes(nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Flatten(2)), x) == set()
