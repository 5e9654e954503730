"""What a run would take and give, before it is paid for."""

from capfilt.estimate.estimate import Estimate, estimate
from capfilt.estimate.share import Share

__all__ = ["Estimate", "Share", "estimate"]
