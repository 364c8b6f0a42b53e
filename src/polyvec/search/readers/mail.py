"""E-mail: the headers that people read, the text, and the names of attachments."""

import email
import re
from collections.abc import Iterator
from email.errors import MessageError
from email.header import decode_header
from email.message import Message

from polyvec.search.readers.encodings import decode
from polyvec.search.readers.html_pages import html_pieces
from polyvec.search.readers.pieces import Piece

HEADERS = ("Subject", "From", "To", "Cc", "Date")

SEPARATOR = re.compile(rb"(?:\A|(?<=\n\n)|(?<=\n\r\n))From [^\n]*+\n")
"""The line before each message of a mailbox."""

QUOTED_SEPARATOR = re.compile(rb"^>(>*From )", re.MULTILINE)

BOUNDARY = re.compile(rb"boundary\s*=|content-type:\s*message/", re.IGNORECASE)

MAX_BOUNDARIES = 100
"""A message with more parts inside one another is not read: every line is compared with the
boundary of each part that is open."""


def message_pieces(raw: bytes) -> Iterator[Piece]:
    """Yield the text of a message."""
    yield 1, _read_message(raw)


def mailbox_pieces(raw: bytes) -> Iterator[Piece]:
    """Yield the text of each message of a mailbox, and the line on which the message begins."""
    separators = list(SEPARATOR.finditer(raw))
    if not separators and raw.strip():
        raise ValueError("not a mailbox (no line begins with `From `)")
    line, counted = 1, 0
    ends = [separator.start() for separator in separators[1:]]
    for separator, end in zip(separators, [*ends, len(raw)], strict=True):
        line += raw.count(b"\n", counted, separator.start())
        counted = separator.start()
        message = QUOTED_SEPARATOR.sub(rb"\1", raw[separator.end() : end])
        yield line, _read_message(message)


def _read_message(raw: bytes) -> str:
    if len(BOUNDARY.findall(raw)) > MAX_BOUNDARIES:
        return "(a message with too many parts)\n\n"
    # The default policy of new programs takes quadratic time for long headers.
    message = email.message_from_bytes(raw)
    texts, names = list[str](), list[str]()
    stack = [message]
    while stack:
        part = stack.pop()
        if headers := _spell_headers(part):
            texts.append(headers)
        if part.get_content_type() == "multipart/alternative":
            texts.append(_choose_text(part))
        elif part.is_multipart():
            stack.extend(reversed(_children(part)))
        elif name := part.get_filename():
            names.append(f"Attachment: {_decode_header(name)}\n")
        else:
            texts.append(_spell_part(part))
    return "\n".join([*(text for text in texts if text.strip()), *names]) + "\n\n"


def _choose_text(alternatives: Message) -> str:
    """The plain text of a message that is also written as HTML, or else its HTML."""
    by_type = {"text/plain": "", "text/html": ""}
    stack = [alternatives]
    while stack:
        part = stack.pop()
        if part.is_multipart():
            stack.extend(reversed(_children(part)))
        elif part.get_content_type() in by_type:
            by_type[part.get_content_type()] += _spell_part(part)
    plain, page = by_type.values()
    return plain if plain.strip() else page


def _children(part: Message) -> list[Message]:
    children = part.get_payload()
    return [child for child in children if isinstance(child, Message)] if children else []


def _spell_part(part: Message) -> str:
    kind = part.get_content_type()
    content = part.get_payload(decode=True)
    if not kind.startswith("text/") or not isinstance(content, bytes):
        return ""
    try:
        charset = part.get_content_charset() or ""
        # Programs declare ASCII for whatever they do not know.
        text = decode(content, "" if charset == "us-ascii" else charset).text
    except ValueError:
        return ""
    if kind == "text/html":
        text = "".join(piece for _, piece in html_pieces(text))
    return text.strip() + "\n"


def _spell_headers(part: Message) -> str:
    values = {name: _decode_header(part[name]) for name in HEADERS if part[name]}
    return "".join(f"{name}: {value}\n" for name, value in values.items())


def _decode_header(value: object) -> str:
    """The text of a header, which may be written in several encodings."""
    try:
        chunks = decode_header(value)  # pyright: ignore[reportArgumentType]
        words = "".join(
            chunk if isinstance(chunk, str) else decode(chunk, charset or "").text
            for chunk, charset in chunks
        )
    except (MessageError, ValueError):
        words = str(value)
    return " ".join(words.split())
