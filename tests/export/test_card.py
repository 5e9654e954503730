from __future__ import annotations

import pytest

from capfilt.export.card import size_category


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (99_999, "10K<n<100K"),
        (9_999_999, "1M<n<10M"),
        (14_000_000, "10M<n<100M"),
        (129_000_000, "100M<n<1B"),
        (5_000_000_000, "1B<n<10B"),
        (10**11, "100B<n<1T"),
        (10**12, "n>1T"),
    ],
)
def test_size_category_is_one_of_the_hubs(count: int, expected: str) -> None:
    assert size_category(count) == expected
