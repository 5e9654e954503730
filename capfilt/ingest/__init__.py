"""From a list of URLs to shards."""

from capfilt.ingest.ingest import ingest
from capfilt.ingest.stats import Ingested

__all__ = ["Ingested", "ingest"]
