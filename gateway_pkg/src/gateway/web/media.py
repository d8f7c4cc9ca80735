"""Pictures and sounds in a JSON body: how much of it they are."""

from __future__ import annotations

import re

# How files begin, in base64: PNG, JPEG, GIF, RIFF (WebP, WAV), MP3 with and without tags, Ogg, FLAC, WebM, MP4.
_FILES = rb"iVBORw0KGgo|/9j/|R0lGOD|UklGR|SUQz|//[A-Za-z]|T2dnUw|ZkxhQ|GkXfo|AAAA[\w+/][GWm2]Z0eXB"
_URL = rb"data:(?:image|audio|video)/[\w.+-]{1,60}(?:;[\w=.+-]{1,60}){0,4};base64,"
_BEGINNING = re.compile(rb'"(?:' + (_URL + b"|" + _FILES).replace(b"/", rb"\\?/") + b")")  # JSON may escape a slash


def media_bytes(body: bytes) -> int:
    """The size of all strings that are a picture or a sound in base64, as data URLs too."""
    size, at = 0, 0
    while (found := _BEGINNING.search(body, at)) is not None:
        start = found.start()
        at = body.find(b'"', found.end())
        if at < 0:
            break
        if body.find(b" ", start, at) < 0:  # else a text that only begins so
            size += at - start
    return size
