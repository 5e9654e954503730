"""Stage `bootstrap`: a list of image URLs and alt texts becomes a filtered, re-captioned dataset.

    urls --ingest--> <folder>/web --run--> <folder>/dataset --verify

Source: BLIP, arXiv:2201.12086, section 3.3.
"""

from capfilt.config import RunConfig
from capfilt.ingest import ingest
from capfilt.run.job import Summary, Where, run
from capfilt.run.verify import Verification, verify


def bootstrap(
    urls: str, folder: str, config: RunConfig, *, local: bool = False, private_hosts: bool = False
) -> tuple[Summary, Verification]:
    """Download, caption and filter, and read everything again."""
    web, dataset = f"{folder}/web", f"{folder}/dataset"
    ingest(urls, web, allow_private_hosts=private_hosts)
    summary = run(config, Where(input=web, output=dataset, local=local))
    return summary, verify(dataset)
