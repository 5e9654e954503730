"""`--where`: a filter on metadata, written as a comparison and computed by Arrow.

    width >= 256 and height >= 256 and license in ["cc0", "cc-by"]
    punsafe < 0.1 or punsafe is None
    not contains(url, "shutterstock") and width / height < 3

Names are metadata fields, values are numbers, texts, True, False. `and`, `or`, `not`, comparisons,
`in`, `is None`, `+ - * /`, `contains(field, "text")`, `matches(field, "regular expression")`.
Nothing else is understood, and nothing is evaluated as code. As in SQL, a comparison with a field
that a sample does not have does not hold, nor one with a value of another kind: strangers' metadata
hold anything. Arithmetic is that of 64-bit floats, so that one sample with a height of 0 stops
nobody; so are comparisons of integers with floats. Lists and objects are their JSON text.
"""

from __future__ import annotations

import ast
import json
import logging
import math
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capfilt.cut import Mask
from capfilt.errors import ConfigError

log = logging.getLogger("capfilt")

_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: pc.add,
    ast.Sub: pc.subtract,
    ast.Mult: pc.multiply,
    ast.Div: pc.divide,
}
_SHOWN = 200  # characters of a filter in a message
_FUNCTIONS: Mapping[str, Callable[[Any, str], Any]] = {
    "contains": lambda field, text: pc.match_substring(field, text),
    "matches": lambda field, pattern: pc.match_substring_regex(field, pattern),
}


class Where:
    """A parsed filter; `fields` are the metadata it asks for."""

    def __init__(self, text: str) -> None:
        """Parse a filter.

        Raises:
            ConfigError: It is not of the language above.
        """
        self.text = text
        self.fields: tuple[str, ...] = ()
        self._kinds: dict[str, str] = {}  # of the fields that are compared with values
        self._fitting: Counter[str] = Counter()  # values by field, of its kind
        self._odd: Counter[str] = Counter()  # and of others
        self._is_float = False  # whether `_value` gives whole numbers as floats
        try:
            with warnings.catch_warnings(action="ignore"):  # of "\." in a regular expression
                tree = ast.parse(text.strip(), mode="eval").body
            self._expression = self._parse(tree)
            self._is_float = True
            self._of_floats = self._parse(tree)
        except (SyntaxError, RecursionError, MemoryError):
            raise self._wrong("not a comparison") from None
        except (ValueError, OverflowError) as error:  # Arrow's are ValueErrors, too
            raise self._wrong(" ".join(str(error).split())[:120]) from None
        if not self.fields:
            raise self._wrong("it names no field")

    def mask(self, metadata: Sequence[Mapping[str, Any]]) -> Mask:
        """Which samples pass, shape [N].

        Raises:
            ConfigError: A field's values cannot be compared like this.
        """
        columns = {name: self._column(name, metadata) for name in self.fields}
        try:
            column = self._compute(columns)
        except (pa.ArrowException, KeyError) as error:
            types = ", ".join(f"{name} is {column.type}" for name, column in columns.items())
            raise self._wrong(f"{' '.join(str(error).split())[:120]} ({types})") from None
        if not pa.types.is_boolean(column.type):
            raise self._wrong(f"it gives {column.type}, not yes or no")
        return np.asarray(pc.fill_null(column, False).to_numpy(), dtype=bool)

    def check(self) -> None:
        """To be called after the last mask: see that the fields are what the filter takes them for.

        Raises:
            ConfigError: All values of a field are of another kind.
        """
        for name, count in (+self._odd).items():
            if not self._fitting[name]:
                raise self._wrong(f"no value of {name} is a {self._kinds[name]}")
            log.warning(
                "--where: %d values of %s are not a %s: as if missing",
                count,
                name,
                self._kinds[name],
            )

    def _column(self, name: str, metadata: Sequence[Mapping[str, Any]]) -> Any:
        values = [_plain(fields.get(name)) for fields in metadata]
        kinds = [_kind(value) for value in values]
        wanted = self._kinds.get(name)
        if wanted is None and len(set(kinds) - {None}) > 1:  # compared with another field, or None
            values = [None if value is None else str(value) for value in values]
        elif wanted is not None:
            fits = [kind == wanted for kind in kinds]
            self._fitting[name] += sum(fits)
            self._odd[name] += sum(kind not in (None, wanted) for kind in kinds)
            values = [value if fit else None for value, fit in zip(values, fits, strict=True)]
        if any(isinstance(value, float) for value in values):  # Arrow takes no 2^53 + 1 among them
            values = [float(value) if type(value) is int else value for value in values]
        return pa.array(values)

    def _expect(self, node: ast.expr, kind: str | None) -> None:
        if isinstance(node, ast.Name) and kind is not None:
            self._kinds.setdefault(node.id, kind)

    def _compute(self, columns: Mapping[str, Any]) -> Any:
        try:
            return _computed(self._expression, columns)
        except pa.ArrowInvalid:  # integers above 2^53, which Arrow does not compare with floats
            floats = {
                name: column.cast(pa.float64(), safe=False)
                if pa.types.is_integer(column.type)
                else column
                for name, column in columns.items()
            }
            return _computed(self._of_floats, floats)

    def _wrong(self, why: str) -> ConfigError:
        shown = self.text if len(self.text) <= _SHOWN else f"{self.text[:_SHOWN]}..."
        return ConfigError(
            f"--where {shown!r}: {why}; write e.g. 'width >= 256 and license in [\"cc0\"]'"
        )

    def _parse(self, node: ast.expr) -> Any:
        if isinstance(node, ast.BoolOp):
            parts = [self._parse(value) for value in node.values]
            combine = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            found = parts[0]
            for part in parts[1:]:
                found = combine(found, part)
            return found
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self._parse(node.operand)
        if isinstance(node, ast.Compare):
            return self._compare(node)
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            for side in (node.left, node.right):
                self._expect(side, "number")
            sides = (
                self._parse(side).cast(pa.float64(), safe=False) for side in (node.left, node.right)
            )
            return _ARITHMETIC[type(node.op)](*sides)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Name):
            self.fields = tuple(dict.fromkeys((*self.fields, node.id)))
            return pc.field(node.id)
        return pc.scalar(self._value(node))

    def _compare(self, node: ast.Compare) -> Any:
        found = None
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            part = self._comparison(left, op, right)
            found = part if found is None else found & part
            left = right
        return found

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Any:
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self._wrong("`is` goes with None alone")
            is_null = self._parse(left).is_null()
            return is_null if isinstance(op, ast.Is) else ~is_null
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple):
                raise self._wrong("`in` goes with a list, as in [1, 2]")
            if right.elts:
                self._expect(left, _kind(self._value(right.elts[0])))
            field = self._parse(left)
            one_of = field.isin([self._value(value) for value in right.elts])
            return one_of if isinstance(op, ast.In) else ~one_of & field.is_valid()
        for field, other in ((left, right), (right, left)):
            if isinstance(other, ast.Constant | ast.UnaryOp):
                self._expect(field, _kind(self._value(other)))
            elif isinstance(other, ast.BinOp):
                self._expect(field, "number")
        return _COMPARISONS[type(op)](self._parse(left), self._parse(right))

    def _call(self, node: ast.Call) -> Any:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in _FUNCTIONS or len(node.args) != 2 or node.keywords:
            known = ", ".join(f'{known}(field, "...")' for known in _FUNCTIONS)
            raise self._wrong(f"the functions are {known}")
        text = self._value(node.args[1])
        if not isinstance(text, str):
            raise self._wrong(f"{name} takes a text")
        self._expect(node.args[0], "text")
        return _FUNCTIONS[name](self._parse(node.args[0]), text)

    def _value(self, node: ast.expr) -> bool | int | float | str:
        sign = 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            sign, node = -1, node.operand
        if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str):
            value = node.value
            if self._is_float and type(value) is int:
                value = float(value)
            if sign == 1:
                return value
            if not isinstance(value, str):
                return -value
        raise self._wrong(f"{ast.unparse(node)!r} is no field, number or text")


def _computed(expression: Any, columns: Mapping[str, Any]) -> Any:
    """A field that no sample of a shard has is of whatever type the filter takes it for."""
    import pyarrow.dataset  # half a second, pandas and all

    for untyped in (pa.null(), pa.string()):
        typed = {
            name: column.cast(untyped) if pa.types.is_null(column.type) else column
            for name, column in columns.items()
        }
        try:
            table = pyarrow.dataset.dataset(pa.table(typed))
            return table.to_table(columns={"": expression}).column(0)
        except pa.ArrowNotImplementedError:
            if untyped == pa.string():
                raise
    raise AssertionError("unreachable")


def _kind(value: bool | int | float | str | None) -> str | None:
    if value is None:
        return None
    kinds = {bool: "yes or no", str: "text"}
    return kinds.get(type(value), "number")


def _plain(value: Any) -> bool | int | float | str | None:
    """A metadata value as Arrow can hold it, whatever a stranger's JSON had."""
    if isinstance(value, list | dict):
        return json.dumps(value, sort_keys=True)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return math.copysign(math.inf, value)
    found: bool | int | float | None = value
    return found
