"""`python -m ipfsreg`."""

from ipfsreg.cli.main import main

main()
