"""Real container tools in real versions, each with state of its own, behind one small interface.

`known.KNOWN` has them all. They come from three places (`programs`): Debian 12's packages, a newer Debian's in a folder
of its own, and Go modules built here. `scripts/setup --dev` brings them; most need root.
"""
