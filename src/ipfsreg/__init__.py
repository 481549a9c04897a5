"""ipfsreg: a container registry with no centre."""

__version__ = "0.1.0"
