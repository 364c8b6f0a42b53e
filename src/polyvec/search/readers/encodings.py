"""The text that the bytes of a file encode, read as a browser reads them.

1. A byte order mark decides.
2. Otherwise the encoding that the file declares, with the meaning that its name has in the Encoding
   Standard (https://encoding.spec.whatwg.org): `gb2312` is GBK and `iso-8859-1` is windows-1252.
   An unknown name declares nothing.
3. Otherwise the file is UTF-8, even if a few of its bytes are damaged.
4. Otherwise its encoding is guessed (chardet), and a note says so.

Bytes that are no text in any of these ways are refused, such as those of images and programs.
"""

import io
import re
from collections.abc import Iterator
from typing import NamedTuple

from polyvec import text_rows

UTF_8_MARK = b"\xef\xbb\xbf"
"""The byte order mark of UTF-8."""

CODECS = {
    "big5": ("big5hkscs", "cp950"),
    "euc-jp": ("euc_jp", "euc_jis_2004"),
    "euc-kr": ("cp949",),
    "gb18030": ("gb18030",),
    "gbk": ("gb18030",),
    "iso-2022-jp": ("iso2022_jp_ext",),
    "iso-8859-8-i": ("iso8859_8",),
    "macintosh": ("mac_roman",),
    "shift_jis": ("cp932",),
    "utf-16be": ("utf-8",),
    "utf-16le": ("utf-8",),
    "windows-874": ("cp874",),
    "x-mac-cyrillic": ("mac_cyrillic",),
    "x-user-defined": ("cp1252",),
}
"""Encodings of the standard that Python has under another name, or of which it knows a part only.

The first codec is used that decodes all bytes, or else the first. A declaration that can be read as
ASCII is not in UTF-16, so the standard takes it for UTF-8.
"""

BINARY_MARKS = (
    *(
        b"\x89PNG",
        b"\xff\xd8\xff",
        b"PK\x03\x04",
        b"PK\x05\x06",
        b"\x1f\x8b",
        b"\xfd7zXZ",
        b"7z\xbc\xaf",
    ),
    *(b"\x28\xb5\x2f\xfd", b"%PDF-", b"\xd0\xcf\x11\xe0", b"\x7fELF", b"\xca\xfe\xba\xbe"),
)
"""How files begin that hold no text, whatever their names say. Other such files have NUL bytes."""

CONTROL = re.compile(rb"[\x00-\x07\x0e-\x1a\x1c-\x1f\x7f]")
"""Bytes that stand in no text, except for the escape sequences of terminals."""

MAX_CONTROL_SHARE = 0.01

MAX_DAMAGED_SHARE = 0.1
"""A declared encoding, or UTF-8, holds if no more than this share of its characters beyond ASCII
cannot be read."""

SAMPLE_BYTES = 65_536
SAMPLE_LINE_BYTES = 4_096
"""The encoding is guessed from this many bytes of lines that are not ASCII."""

BEYOND_ASCII = re.compile(rb"[\x80-\xff]")

ISO_2022_JP = re.compile(rb"\x1b\$[@B]")

COOKIE = re.compile(
    rb"\A(?:[^\n]{0,200}\n)?[^\n]{0,80}?(?:#|-\*-|vim?:)[^\n]{0,200}?coding[:=][ \t]*([-\w.]{1,40})"
)
"""The declaration of Python, Emacs and Vim, in one of the first two lines."""

META = re.compile(rb"<meta[\s/]([^>]{0,1000})", re.IGNORECASE)
ATTRIBUTE = re.compile(rb"([^\s=\"'/>]++)\s*+=\s*+(\"[^\"]*+\"?|'[^']*+'?|[^\s>]++)")
CONTENT_CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([^\s\"';]{1,40})", re.IGNORECASE)
COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.DOTALL)

XML_ENCODING = re.compile(rb"\A\s*<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w:.-]{1,40})")

HEAD_BYTES = 4_096
"""A declaration stands within the first bytes of a file."""


class Decoded(NamedTuple):
    """The text of some bytes."""

    text: str
    note: str = ""
    """What the user should know about the encoding; empty if it is declared or UTF-8."""


def decode(raw: bytes, label: str = "") -> Decoded:
    """The text of a file that declares the encoding `label`; "" stands for no declaration.

    Raises ValueError if the bytes are not text.
    """
    if raw.startswith(BINARY_MARKS):
        raise ValueError("not text (it begins as a binary file does)")
    encoding = text_rows.find_encoding(raw)
    if encoding != "utf-8-sig":
        return _check(_decode_as(raw, encoding), encoding)
    if raw.startswith(UTF_8_MARK):
        return _check(_decode_as(raw[len(UTF_8_MARK) :], "utf-8"), "utf-8")
    if b"\0" in raw:
        raise ValueError("not text (it contains NUL bytes)")
    if label and (decoded := _decode_label(raw, label)):
        return decoded
    if ISO_2022_JP.search(raw) and raw.isascii() and (decoded := _decode_label(raw, "iso-2022-jp")):
        return decoded
    decoded = _decode_as(raw, "utf-8")
    return decoded if _is_sound(decoded.text) else _guess(raw)


def html_label(raw: bytes) -> str:
    """The encoding that an HTML page declares in a `meta` element; "" if it declares none."""
    for element in META.finditer(COMMENT.sub(b"", raw[:HEAD_BYTES])):
        values = {
            name.lower(): value.strip(b"\"' ") for name, value in ATTRIBUTE.findall(element[1])
        }
        label = values.get(b"charset", b"")
        if values.get(b"http-equiv", b"").lower() == b"content-type":
            content = CONTENT_CHARSET.search(values.get(b"content", b""))
            label = label or (content[1] if content else b"")
        if label:
            return label.decode("ascii", "ignore")
    return xml_label(raw)


def xml_label(raw: bytes) -> str:
    """The encoding that an XML document declares in its first line; "" if it declares none."""
    return _find_label(XML_ENCODING, raw)


def cookie_label(raw: bytes) -> str:
    """The encoding that an editor reads in the first two lines; "" if there is none."""
    return _find_label(COOKIE, raw)


def looks_binary(first_bytes: bytes) -> bool:
    """Whether a file that begins with these bytes cannot be text."""
    if first_bytes.startswith(BINARY_MARKS):
        return True
    return b"\0" in first_bytes and text_rows.find_encoding(first_bytes) == "utf-8-sig"


def find_codecs(label: str) -> tuple[str, ...]:
    """Python's codecs for a name of the Encoding Standard; none if the standard has no such name.

    >>> find_codecs("x-sjis"), find_codecs("latin1"), find_codecs("no-such")
    (('cp932',), ('cp1252',), ())
    """
    import webencodings

    encoding = webencodings.lookup(label)
    if encoding is None:
        return ()
    return CODECS.get(encoding.name, (encoding.codec_info.name,))


def _find_label(pattern: re.Pattern[bytes], raw: bytes) -> str:
    declaration = pattern.search(raw[:HEAD_BYTES])
    return declaration[1].decode("ascii", "ignore") if declaration else ""


def _decode_label(raw: bytes, label: str) -> Decoded | None:
    """The text in the declared encoding; None if it is unknown, or is not that of the text."""
    codecs = find_codecs(label)
    for codec in codecs:
        try:
            return Decoded(raw.decode(codec))
        except UnicodeDecodeError:
            continue
    if codecs:
        decoded = _decode_as(raw, codecs[0])
        if _is_sound(decoded.text):
            return decoded
    return None


def _decode_as(raw: bytes, codec: str) -> Decoded:
    """The text, with U+FFFD in place of bytes that cannot be read, and a note of their number."""
    try:
        return Decoded(raw.decode(codec))
    except UnicodeDecodeError:
        text = raw.decode(codec, "replace")
    damaged = text.count("\ufffd")
    characters = "characters are" if damaged > 1 else "character is"
    return Decoded(text, f"{damaged:,} {characters} not {codec}, and read as U+FFFD")


def _check(decoded: Decoded, codec: str) -> Decoded:
    if not _is_sound(decoded.text) or "\0" in decoded.text:
        raise ValueError(f"not text (it begins as {codec}, and is something else)")
    return decoded


def _is_sound(text: str) -> bool:
    """Whether few of the characters beyond ASCII could not be read."""
    damaged = text.count("\ufffd")
    if not damaged:
        return True
    beyond = len(text) - len(text.encode("ascii", "ignore"))
    return damaged <= MAX_DAMAGED_SHARE * beyond


def _guess(raw: bytes) -> Decoded:
    """The text in the most likely encoding that decodes all bytes."""
    if len(CONTROL.findall(raw)) > MAX_CONTROL_SHARE * len(raw):
        raise ValueError("not text (it contains control characters)")
    for name in _likely_encodings(raw):
        for codec in find_codecs(name) or (name,):
            try:
                text = raw.decode(codec)
            except (UnicodeDecodeError, LookupError):
                continue
            return Decoded(text, f"its encoding is not known; it is read as {name}, a guess")
    raise ValueError("not text (it is in no known encoding)")


def _likely_encodings(raw: bytes) -> Iterator[str]:
    """Yield the names of encodings, the most likely first."""
    import chardet
    from chardet.enums import EncodingEra

    sample = bytearray()
    for line in io.BytesIO(raw):
        if first := BEYOND_ASCII.search(line):
            # The bytes before the first one are ASCII, so no character is cut in two here.
            start = max(0, first.start() - 100)
            sample += line[start : start + SAMPLE_LINE_BYTES]
        if len(sample) > SAMPLE_BYTES:
            break
    for guess in chardet.detect_all(bytes(sample), encoding_era=EncodingEra.MODERN_WEB):
        if guess["encoding"]:
            yield guess["encoding"].lower()
