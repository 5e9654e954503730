from __future__ import annotations

import pytest

from capfilt.errors import ConfigError
from capfilt.run.where import Where


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"limit": 0}, "--limit must be at least 1, is 0"),
        ({"workers": 0}, "--workers must be at least 1, is 0"),
        ({"gpus_per_worker": -0.5}, "--gpus-per-worker must be 0 or more, is -0.5"),
        ({"local": True, "workers": 2}, "--local is one worker in this process"),
        ({"watch": True, "allow_unfinished": True}, "no --allow-unfinished"),
    ],
)
def test_where_refuses_what_cannot_be(options: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Where("/web", "/out", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("output", ["/data/web", "/data"])
def test_check_places_refuses_an_output_that_holds_input(output: str) -> None:
    with pytest.raises(ConfigError, match="holds INPUT"):
        Where("/data/web", output).check_places()
    Where("/data/web", f"{output}-new").check_places()


@pytest.mark.parametrize(
    "url", ["s3://key:s3cr3t@host/web", "https://s3cr3t@host/web", "http://me:s3cr3t@host/web"]
)
def test_check_places_refuses_a_secret_without_showing_it(url: str) -> None:
    for where in (Where(url, "/out"), Where("/web", url), Where("/web", "/out", human=url)):
        with pytest.raises(ConfigError, match=r"@host: its credentials would be") as refused:
            where.check_places()
        assert "s3cr3t" not in str(refused.value)
