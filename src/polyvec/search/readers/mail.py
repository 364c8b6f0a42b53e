"""E-mail: the headers that people read, the text, and the names of attachments."""

import email
import re
from collections.abc import Iterator
from email.errors import MessageError
from email.header import decode_header
from email.message import Message

from polyvec.search.readers.encodings import decode
from polyvec.search.readers.html_pages import html_pieces
from polyvec.search.readers.pieces import Cut, Piece

HEADERS = ("Subject", "From", "To", "Cc", "Date")

SEPARATOR = re.compile(rb"(?:\A|(?<=\n\n)|(?<=\n\r\n))From [^\n]*+\n")
"""The line before each message of a mailbox."""

QUOTED_SEPARATOR = re.compile(rb"^>(>*From )", re.MULTILINE)

BOUNDARY = re.compile(rb"boundary\s*=|content-type:\s*message/", re.IGNORECASE)

MAX_COMPARISONS = 20_000_000
"""Every line of a message is compared with the boundary of each part that is open. A message that
could need more comparisons is not read."""


MAX_HEADER_CHARACTERS = 20_000
"""The rest of a longer header is not read: decoding its words takes quadratic time."""


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
    unread = list[str]()
    for separator, end in zip(separators, [*ends, len(raw)], strict=True):
        line += raw.count(b"\n", counted, separator.start())
        counted = separator.start()
        message = QUOTED_SEPARATOR.sub(rb"\1", raw[separator.end() : end])
        try:
            yield line, _read_message(message)
        except ValueError as error:
            unread.append(f"the message in line {line} is not read, since {error}")
    if unread:
        more = f", and {len(unread) - 1} more are not" if len(unread) > 1 else ""
        raise Cut(unread[0] + more)


def _read_message(raw: bytes) -> str:
    """The text of a message. Raises ValueError if its parts are too many."""
    if len(BOUNDARY.findall(raw)) * raw.count(b"\n") > MAX_COMPARISONS:
        raise ValueError("it has too many parts")
    try:
        # The default policy of new programs takes quadratic time for long headers.
        message = email.message_from_bytes(raw)
    except RecursionError:
        raise ValueError("its parts are nested too deeply") from None
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
    value = value[:MAX_HEADER_CHARACTERS] if isinstance(value, str) else value
    try:
        chunks = decode_header(value)  # pyright: ignore[reportArgumentType]
        words = "".join(
            chunk if isinstance(chunk, str) else decode(chunk, charset or "").text
            for chunk, charset in chunks
        )
    except (MessageError, ValueError):
        words = str(value)
    return " ".join(words.split())
