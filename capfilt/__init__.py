"""capfilt: CapFilt, the dataset bootstrapping of BLIP and BLIP-2, as a service."""

__version__ = "0.1.0"
