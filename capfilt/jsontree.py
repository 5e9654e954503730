"""JSON that strangers wrote, as a tree."""

from __future__ import annotations

import json
from typing import Any


def parse_json(data: bytes | str) -> Any:
    """As `json.loads`, whose `RecursionError` for thousands of nested brackets is a `ValueError`.

    Raises:
        ValueError: It is no JSON, or nested too deep.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
