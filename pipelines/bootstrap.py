"""Stage `bootstrap`: a list of image URLs and alt texts becomes a filtered, re-captioned dataset.

    urls --ingest--> <folder>/web --run--> <folder>/dataset --verify

Source: BLIP, arXiv:2201.12086, section 3.3.
"""

from collections.abc import Sequence
from pathlib import Path

from capfilt.config import RunConfig
from capfilt.ingest import Ingested, ingest
from capfilt.run.job import Summary, Where, run
from capfilt.run.verify import Verification, verify


def bootstrap(
    urls: str,
    folder: str,
    config: RunConfig,
    *,
    private_hosts: Sequence[str] = (),
    samples_per_shard: int = 10_000,
) -> tuple[Ingested, Summary, Verification]:
    """Download, caption and filter on Ray, and read everything again; once more to resume.

    Args:
        urls: Parquet, csv or tsv with a URL and a caption column.
        folder: Gets `web/` and `dataset/`.
        config: What the run does.
        private_hosts: Hosts to fetch from although they are not public.
        samples_per_shard: Rows of the list per shard.
    """
    web, dataset = str(Path(folder, "web")), str(Path(folder, "dataset"))
    ingested = ingest(
        urls, web, allow_private_hosts=private_hosts, samples_per_shard=samples_per_shard
    )
    summary = run(config, Where(input=web, output=dataset))
    return ingested, summary, verify(dataset)
