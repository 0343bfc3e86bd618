"""Text of others in a terminal: names of routes, answers of servers, messages about them."""

__all__ = ["printable"]


def printable(text: str) -> str:
    """Return a text in which characters that are not printable are escaped as in Python, for example ESC as `\\x1b`.

    A client chooses the names of routes. A terminal would obey its control sequences, and a lone surrogate cannot be
    encoded.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
