"""What a card can do at most, and what that makes of an operation."""

# Measured on an H200 (docs/performance.md); taken where a card's own were not measured.
H200 = {"flop_per_s": 790e12, "bytes_per_s": 4.3e12, "source": "an H200's, not this card's"}


def floor(op, rates):
    """The longer of the time that an operation's bytes and its arithmetic need, and how near it comes."""
    ms = max(op["bytes"] / rates["bytes_per_s"], op["flop"] / rates["flop_per_s"]) * 1e3
    return {"floor_ms": ms, "of_floor": ms / op["ms"] if op["ms"] else None}
