"""The models that travel with the package, on a thousand scenes that they have not seen."""

from __future__ import annotations

import pytest

from capfilt.demo.demo import demo

pytest.importorskip("img2dataset")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SEED = 12  # of pictures that no choice was made with


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    folder = tmp_path_factory.mktemp("shown") / "demo"
    return demo(folder, 1000, seed=SEED, quiet=True).to_dict()


@pytest.mark.parametrize(
    ("figure", "least", "most"),
    [
        ("captions_true", 0.95, 1.0),
        ("itm_auc", 0.99, 1.0),
        ("itm_auc_hard_lies", 0.95, 1.0),
        ("noise_ratio", 0.05, 0.30),
    ],
)
def test_the_bundled_checkpoint_is_within_its_bars(
    figures: dict[str, float], figure: str, least: float, most: float
) -> None:
    assert least <= figures[figure] <= most
