"""Texts that every stream takes; imports nothing, so that the command line may import it at once."""


def printable(text: object) -> str:
    """Return a path or another text as UTF-8; the bytes of file names may be none."""
    return str(text).encode("utf-8", "replace").decode()
