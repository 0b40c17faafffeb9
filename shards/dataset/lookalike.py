"""Names files of other kinds that lie where a picture, a tar or a manifest should be, by their first bytes."""

from __future__ import annotations

_KINDS = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, which stands for a file that was not fetched. Run: git lfs pull"),
    (b"/annex/objects/", "a git-annex pointer, which stands for a file that was not fetched. Run: git annex get"),
    (b"<!doctype html", "a web page (HTML), such as a server sends with an error or for a login. Fetch the file again"),
    (b"<html", "a web page (HTML), such as a server sends with an error or for a login. Fetch the file again"),
    (b"pk\x03\x04", "a zip archive. Unpack it, and make a tar of its files"),
    (b"<?xml", "an XML document, such as a store sends with an error. Fetch the file again"),
)


def kind_of(data: bytes) -> str:
    """Returns what a file is that begins with `data`, and what to do; empty for any kind that is not known here."""
    head = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return next((kind for magic, kind in _KINDS if head.startswith(magic)), "")
