import json
import os
from pathlib import Path
from typing import Any

import pytest

from capfilt.demo.folder import claim, digest
from capfilt.demo.world import EVALUATION, draw_pictures
from capfilt.errors import ConfigError

DEMO: dict[str, Any] = {"arguments": {"pictures": 40, "seed": 0}, "truth": "a", "run": "b"}


def test_claim_makes_a_folder_and_finds_it_again(tmp_path: Path) -> None:
    folder = tmp_path / "below" / "demo"
    claim(folder, DEMO)
    assert json.loads((folder / "demo.json").read_bytes()) == DEMO
    (folder / "web").mkdir()
    claim(folder, DEMO)


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (
            DEMO | {"truth": "another"},
            "made by another version of capfilt; give another folder, or",
        ),
        (DEMO | {"run": "another"}, "made by another version of capfilt; give another folder, or"),
        ({"pictures": 40, "seed": 0}, "another version"),  # as the first versions had it
        (DEMO | {"arguments": {"pictures": 41, "seed": 0}}, "other arguments; give another folder"),
        ({"pictures": 41, "seed": 0}, "other arguments"),
        ([], "other arguments"),
    ],
)
def test_claim_of_another_demos_folder_says_what_to_do(
    tmp_path: Path, there: object, message: str
) -> None:
    (tmp_path / "demo.json").write_text(json.dumps(there))
    with pytest.raises(ConfigError, match=message) as raised:
        claim(tmp_path, DEMO)
    assert f"remove {tmp_path}" in str(raised.value)
    assert json.loads((tmp_path / "demo.json").read_bytes()) == there


def test_claim_of_a_record_that_was_cut_short_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text('{"arguments": {"pi')
    with pytest.raises(ConfigError, match="damaged; give another folder, or remove"):
        claim(tmp_path, DEMO)


def test_claim_goes_on_where_a_demo_was_killed_at_its_first_file(tmp_path: Path) -> None:
    (tmp_path / ".demo.json.elsewhere-1-00000000.tmp").touch()
    with pytest.raises(ConfigError, match="not empty"):  # its writer may be alive, over there
        claim(tmp_path, DEMO)
    left = next(tmp_path.iterdir())
    os.utime(left, (0, 0))
    claim(tmp_path, DEMO)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


def test_claim_of_a_folder_of_others_leaves_it_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="not empty and not a demo's; give another folder"):
        claim(tmp_path, DEMO)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/demo"])
def test_claim_where_no_folder_can_be_is_a_config_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"^demo: {tmp_path / place}.*; give a"):
        claim(tmp_path / place, DEMO)


def test_digest_is_of_all_that_is_drawn() -> None:
    drawn = list(draw_pictures(3, EVALUATION))
    assert digest(drawn) == digest(draw_pictures(3, EVALUATION))
    assert (
        len({digest(drawn), digest(drawn[:2]), digest(draw_pictures(3, EVALUATION, seed=1))}) == 3
    )
