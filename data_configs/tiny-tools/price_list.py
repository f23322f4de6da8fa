"""A table that nobody can know by heart, as a tool."""

import hashlib


def price(item: int):
    """Look up a price.

    Args:
        item: number
    """
    digest = hashlib.sha256(f"price of {int(item)}".encode()).digest()
    return 100 + int.from_bytes(digest[:4]) % 900
