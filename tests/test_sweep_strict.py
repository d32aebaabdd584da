"""Strict YAML and ranges of sweep files."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from redistill_lib.sweep.ranges import read_range
from redistill_lib.sweep.strict import Node, read_strict


def read(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return read_strict(path)[0].plain()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.5E+2", 150.0),
        (".5", 0.5),
        ("+1.", 1.0),
        ("-0", 0),
        ("42", 42),
        ("0.0", 0.0),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("4-11221", "4-11221"),
        ("18.75KB", "18.75KB"),
        ("hf:uoft-cs/cifar10", "hf:uoft-cs/cifar10"),
        ("my_net:make", "my_net:make"),
        ("'010'", "010"),
        ('"yes"', "yes"),
        ("'1:30'", "1:30"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("1e", "1e"),
        ("[1, [2.0, x], {a: 1}]", [1, [2.0, "x"], {"a": 1}]),
        ("{yesterday: 1}", {"yesterday": 1}),
    ],
)
def test_values_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: Any) -> None:
    found = read(tmp_path, f"a: {text}")["a"]
    assert (found, type(found)) == (value, type(value))


def test_numbers_come_back_as_they_were(tmp_path: Path) -> None:
    draws = random.Random(0)
    for _ in range(300):
        number = draws.choice([draws.randint(-(10**9), 10**9), draws.uniform(-1, 1) * 10.0 ** draws.randint(-30, 30)])
        found = read(tmp_path, f"a: {number!r}")["a"]
        assert (found, type(found)) == (number, type(number))


def test_what_readers_take_alike_stays_as_it_is(tmp_path: Path) -> None:
    """Against PyYAML, of YAML 1.1: a word is the same to both, or refused here, or a number in 1.2 alone."""
    draws = random.Random(1)
    seen = {"same": 0, "refused": 0, "number": 0}
    for _ in range(1000):
        word = "".join(draws.choices("01289001289.eE+-_:xobnf", k=draws.randint(1, 6)))
        try:
            here = read(tmp_path, f"a: {word}")["a"]
        except ValueError:
            seen["refused"] += 1
            continue
        there = yaml.safe_load(f"a: {word}")["a"]
        if (here, type(here)) == (there, type(there)):
            seen["same"] += 1
        else:
            assert isinstance(there, str) and float(there) == here, word  # such as 1e5
            seen["number"] += 1
    assert min(seen.values()) > 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 010", "line 2: 010 is octal in YAML 1.1"),
        ("a: 08", "line 1: 08 is octal"),
        ("a: -007.5", "line 1: -007.5 has leading zeros"),
        ("a: [1, 0o10]", "line 1: 0o10 is no decimal number"),
        ("a: 0x1F", "line 1: 0x1F is no decimal number"),
        ("a: 1:30", "line 1: 1:30 is to base 60"),
        ("a: 1_000", "line 1: 1_000 is a number in YAML 1.1 and text in 1.2: leave out the _"),
        ("a: 1e1_0", "leave out the _"),
        ("a: .9_", "leave out the _"),
        ("a: No", "line 1: No is text in YAML 1.2 and false in 1.1: write false, or put it in quotes"),
        ("a:\n  - on", "line 2: on is text in YAML 1.2 and true in 1.1: write true"),
        ("a: 2024-05-01", "line 1: 2024-05-01 is a date"),
        ("a: 2024-05-01 10:00:00", "is a date"),
        ("a: -.INF", "line 1: -.INF is no number"),
        ("a: NaN", "line 1: NaN is no number"),
        ("a: 1e999", "line 1: 1e999 is more than a float can hold"),
        ("a: None", "line 1: None is text in YAML: write null"),
        ("a: 1\nb: 2\na: 3", "line 3: a is there already in line 1: keep one of them"),
        ("b:\n  c: 1\n  c: 2", "line 3: c is there already in line 2"),
        ("1: 2", "line 1: 1 stands where a name is wanted"),
        ("a: {true: 2}", "line 1: true stands where a name is wanted"),
        ("off: 2", "line 1: off stands where a name is wanted"),
        ("a: {[1]: 2}", "line 1: a list or mapping stands where a name is wanted"),
        ("a: 1\nb:\nc: 2", "line 2: b has no value: write one (null for None)"),
        ("a: {LR}", "line 1: LR has no value"),
        ("a:\n- 1\n-", "line 3: a value is missing"),
        ("a: 1\nb:\n\t- 1", "line 3: a tab: YAML wants spaces"),
        ("a:\t1", "line 1: a tab"),
        ("a: &x 1", "line 1: anchors (&) and aliases (*) are not read here"),
        ("a: *x", "line 1: anchors (&) and aliases (*) are not read here"),
        ("<<: {a: 1}", "line 1: merge keys (<<) are not read here"),
        ("a: !!int '3'", "line 1: tags (!) are not read here"),
        ("a: !!python/object/apply:os.getcwd []", "line 1: tags (!) are not read here"),
        ("a: 1\n---\nb: 1", "line 2: a second document starts here"),
        ("a: b: c", "line 1: a second ': ' in one line"),
        ("a: @x", "line 1: found character '@' that cannot start any token: put text that starts with it in quotes"),
        ("a: [1,\n 2", "not YAML: "),
        ("a: {b: [1,\n c: 2}", "line 2: not YAML: "),
        ("a: 1\nb: \x01", "line 2: a character that text does not hold (code 1)"),
        ("", "a.yaml is empty"),
        ("# nothing", "a.yaml is empty"),
        ("[" * 2000, "too deeply"),
    ],
    ids=lambda text: text[:30].encode("unicode_escape").decode(),
)
def test_what_could_be_meant_in_two_ways_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"a\.yaml") as error:
        read(tmp_path, text)
    assert message in str(error.value)
    assert str(error.value).count("\n") == 0


def test_other_encodings_are_refused_and_a_mark_of_utf_8_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"a: 1\nb: \xff")
    with pytest.raises(ValueError, match=r"a\.yaml, line 2: not UTF-8 text"):
        read_strict(path)
    path.write_bytes(b"\xef\xbb\xbfa: \xc3\xa9")
    assert (read_strict(path)[0].plain(), read_strict(path)[1]) == ({"a": "é"}, "a: é")


# ranges


def span(**entries: Any) -> list[int | float]:
    entries = {name.rstrip("_"): value for name, value in entries.items()}
    nodes = {name: Node(value, "a.yaml, line 3", str(value)) for name, value in entries.items()}
    return read_range(Node(nodes, "a.yaml, line 2"))


@pytest.mark.parametrize(
    ("entries", "values"),
    [
        ({"from_": 0.1, "to": 0.5, "step": 0.1}, [0.1, 0.2, 0.3, 0.4, 0.5]),
        ({"from_": 0.5, "to": 0.1, "step": -0.2}, [0.5, 0.3, 0.1]),
        ({"from_": 0, "to": 1, "step": 0.3}, [0, 0.3, 0.6, 0.9]),
        ({"from_": 2, "to": 8, "step": 3}, [2, 5, 8]),
        ({"from_": 1, "to": 1, "step": 1}, [1]),
        ({"from_": 0, "to": 1, "number": 5}, [0, 0.25, 0.5, 0.75, 1]),
        ({"from_": 0.1, "to": 0.3, "number": 3, "scale": "linear"}, [0.1, 0.2, 0.3]),
        ({"from_": 1e-4, "to": 1e-1, "number": 4, "scale": "log"}, [1e-4, 1e-3, 1e-2, 1e-1]),
        ({"from_": 1000, "to": 1, "number": 4, "scale": "log"}, [1000, 100, 10, 1]),
        ({"from_": 1, "to": 8, "number": 3, "scale": "log"}, [1, math.sqrt(8), 8]),
    ],
)
def test_ranges_are_exact(entries: dict[str, Any], values: list[int | float]) -> None:
    assert [(x, type(x)) for x in span(**entries)] == [(x, type(x)) for x in values]


def test_ranges_read_as_their_decimals_do() -> None:
    """Steps of a few digits: each value is the float that its decimals, written out, would be."""
    draws = random.Random(2)
    for _ in range(200):
        digits, first, step = draws.randint(1, 6), draws.randint(-999, 999), draws.randint(1, 99)
        count = draws.randint(2, 20)
        expected = [float(f"{first + step * k}e-{digits}") for k in range(count)]
        by_step = span(from_=expected[0], to=expected[-1], step=float(f"{step}e-{digits}"))
        assert by_step == expected == span(from_=expected[0], to=expected[-1], number=count)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"from_": 1, "to": 2}, "line 2: a range has from, to, and either step or number"),
        ({"from_": 1, "to": 2, "step": 1, "number": 2}, "either step or number"),
        ({"from_": 1, "to": 2, "steps": 1}, "line 3: a range has no steps; did you mean 'step'?"),
        ({"from_": 1, "to": "2", "step": 1}, "line 3: to of a range wants a number, got 2"),
        ({"from_": True, "to": 2, "step": 1}, "from of a range wants a number"),
        ({"from_": 1, "to": 2, "step": 0}, "a step of 0 never gets from 1 to 2"),
        ({"from_": 1, "to": 2, "step": -1}, "a step of -1 never gets from 1 to 2"),
        ({"from_": 1, "to": 2, "number": 1}, "number of a range is a whole number of 2 or more, not 1"),
        ({"from_": 1, "to": 2, "number": 2.0}, "number of a range is a whole number"),
        ({"from_": 1, "to": 2, "step": 1, "scale": "log"}, "a range with a step has no scale"),
        ({"from_": 1, "to": 2, "number": 3, "scale": "loga"}, "scale is log or linear, not loga"),
        ({"from_": 0, "to": 2, "number": 3, "scale": "log"}, "from and to above 0"),
        ({"from_": 0, "to": 1, "step": 1e-300}, "are the most"),
        ({"from_": 0, "to": 1, "number": 10**9}, "1,000,000,000 values; 100,000 are the most"),
    ],
)
def test_wrong_ranges(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^a\.yaml, line [23]: ") as error:
        span(**entries)
    assert message in str(error.value)
