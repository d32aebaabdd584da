"""YAML in which no value is taken for another: what readers of YAML disagree on is an error that names its line.

The scalars are those of YAML 1.2's core schema (https://yaml.org/spec/1.2.2/, section 10.3), so that ``1e-3`` is a
number. What YAML 1.1 reads in another way than it looks (``010``, ``1:30``, ``yes``, dates), and all that hides what
is given (repeated keys, anchors, tags), is refused with a cure.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_CONSTANTS: dict[str, bool | None] = dict.fromkeys(("null", "Null", "NULL", "~"))
_CONSTANTS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_QUOTE = "in quotes for text"
#: What reads as one thing here and as another there: pattern, what it is, cure.
_REFUSED = [
    (r"(?i:yes|on)", "is text in YAML 1.2 and true in 1.1", "write true, or put it in quotes"),
    (r"(?i:no|off)", "is text in YAML 1.2 and false in 1.1", "write false, or put it in quotes"),
    (r"None", "is text in YAML", "write null, or put it in quotes"),
    (r"[-+]?\.?(?i:inf|infinity|nan)", "is no number that a notebook can take", f"write another, or it {_QUOTE}"),
    (
        r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?",
        "is to base 60 in YAML 1.1",
        f"write it in decimals, or {_QUOTE}",
    ),
    (r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?", "is a date in YAML 1.1", "write it in quotes"),
    (r"[-+]?0[oxb][0-9a-fA-F_]+", "is no decimal number", f"write it in decimals, or {_QUOTE}"),
    (r"[-+]?0[0-9_]+", "is octal in YAML 1.1 and decimal in 1.2", f"write it without leading zeros, or {_QUOTE}"),
    (r"[-+]?0[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?", "has leading zeros", f"write it without, or {_QUOTE}"),
    (
        r"(?=.*_)[-+]?\.?[0-9][0-9_.]*([eE][-+]?[0-9_]+)?",
        "is a number in YAML 1.1 and text in 1.2",
        "leave out the _",
    ),
]


@dataclass(frozen=True)
class Node:
    """A value of a file and where it stands: text, a number, true, false, null, a list of nodes, or a dict of nodes.

    `where` starts a sentence about it ("a.yaml, line 4"); `text` is how a scalar is written.
    """

    value: Any
    where: str
    text: str = ""

    def plain(self) -> Any:
        """The value without the nodes inside it."""
        if isinstance(self.value, dict):
            return {name: node.plain() for name, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value

    def __str__(self) -> str:
        return self.text or repr(self.plain())

    def wrong(self, said: str) -> ValueError:
        """The error to raise about it."""
        return ValueError(f"{self.where}: {said}")


def read_strict(path: str | Path) -> tuple[Node, str]:
    """A file's value and its text. ValueError with file, line and cure; OSError where it cannot be read.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder, "a.yaml")
    ...     _ = file.write_text("LR: [1e-3, 0.01]")
    ...     node, text = read_strict(file)
    >>> node.plain(), text
    ({'LR': [0.001, 0.01]}, 'LR: [1e-3, 0.01]')
    """
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text: save the file as UTF-8") from None
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise ValueError(f"{path} is empty")
        return _read(node, str(path)), text
    except yaml.YAMLError as error:
        raise ValueError(_said(error, text, path)) from None
    except RecursionError:
        raise ValueError(f"{path}: lists or mappings inside each other too deeply to read") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Loader(yaml.BaseLoader):
    """Composes nodes, all scalars as text; names for values and types of another program's are errors."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise yaml.MarkedYAMLError(
                problem="anchors (&) and aliases (*) are not read here: write the value out, or put text in quotes",
                problem_mark=event.start_mark,
            )
        if event.tag is not None:
            raise yaml.MarkedYAMLError(
                problem="tags (!) are not read here: leave it out, or put text in quotes",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)


def _read(node: Any, path: str, line: int | None = None) -> Node:
    """`line` is that of the key before it, where it has one."""
    where = f"{path}, line {line or _line(node)}"
    if isinstance(node, yaml.MappingNode):
        return Node(dict(_items(node, path)), where)
    if isinstance(node, yaml.SequenceNode):
        return Node([_read(entry, path) for entry in node.value], where)
    return Node(node.value if node.style else _scalar(node.value, where), where, node.value)


def _items(node: Any, path: str) -> Iterator[tuple[str, Node]]:
    lines: dict[str, int] = {}
    for key, value in node.value:
        where = f"{path}, line {_line(key)}"
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"{where}: a list or mapping stands where a name is wanted")
        if (name := key.value) == "<<":
            raise ValueError(f"{where}: merge keys (<<) are not read here: write the values out")
        if not key.style and not _is_text(name):
            raise ValueError(f"{where}: {name or 'nothing'} stands where a name is wanted, and is none")
        if name in lines:
            raise ValueError(f"{where}: {name} is there already in line {lines[name]}: keep one of them")
        lines[name] = _line(key)
        if isinstance(value, yaml.ScalarNode) and not value.style and not value.value:
            raise ValueError(f"{where}: {name} has no value: write one (null for None), or leave the line out")
        yield name, _read(value, path, _line(key))


def _scalar(text: str, where: str) -> Any:
    """What plain text is."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if not text:
        raise ValueError(f"{where}: a value is missing: write one, null for None")
    for pattern, what, cure in _REFUSED:
        if re.fullmatch(pattern, text):
            raise ValueError(f"{where}: {text} {what}: {cure}")
    if _WHOLE.fullmatch(text) and len(text) < 4000:  # Python refuses to read longer ones
        return int(text)
    if _NUMBER.fullmatch(text):
        if not math.isfinite(number := float(text)):
            raise ValueError(f"{where}: {text[:20]} is more than a float can hold: write a smaller one")
        return number
    return text


def _is_text(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return isinstance(_scalar(text, ""), str)
    return False


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def _said(error: yaml.YAMLError, text: str, path: str | Path) -> str:
    """What PyYAML found, in one line."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"{path}, line {line}: a character that text does not hold (code {error.character}): take it out"
    mark, problem = getattr(error, "problem_mark", None), str(getattr(error, "problem", error))
    if mark is None:
        return f"{path} is not YAML: {problem}"
    line = mark.line + 1
    if isinstance(error, yaml.composer.ComposerError):
        problem = "a second document starts here (---): make it a file of its own"
    elif "'\\t'" in problem:
        problem = "a tab: YAML wants spaces, replace it by them"
    elif "cannot start any token" in problem:
        problem += ": put text that starts with it in quotes"
    elif "mapping values are not allowed" in problem:
        problem = "a second ': ' in one line, or a wrong indent: put text that holds ': ' in quotes"
    elif error.__class__ is not yaml.MarkedYAMLError:
        opened = getattr(error, "context_mark", None)
        since = (
            f" (it belongs to what starts in line {opened.line + 1})" if opened and opened.line + 1 != line else ""
        )
        problem = f"not YAML: {problem}{since}"
    return f"{path}, line {line}: {problem}"
