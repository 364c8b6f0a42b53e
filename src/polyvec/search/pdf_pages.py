"""The text of the pages of a PDF."""

import io
import re
from collections.abc import Iterator
from typing import Any

MAX_PAGES = 5_000
"""A longer PDF is not read. Extracting the text takes at least a second per hundred pages."""

CONTENT_FACTOR = 6
"""A file may unpack to this many times its size, and to `SPARE_BYTES` more. Pages can share what
they show, and packed bytes can unpack to a thousand times their number."""

SPARE_BYTES = 1_000_000

BROKEN_PDF_ERRORS = (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError)
"""The errors, beside its own, that pypdf raises for a file with invalid objects."""

SURROGATES = re.compile("[\ud800-\udfff]")


class ContentTooLarge(ValueError):
    """The pages that follow are not read, because the file holds less than it shows."""


def pdf_pages(raw: bytes) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each page.

    Raises ValueError if the file is no PDF that can be read, and ContentTooLarge after the pages
    that a file of this size may show.
    """
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    left = CONTENT_FACTOR * len(raw) + SPARE_BYTES

    def count_operation(operator: Any, operands: Any, *matrices: Any) -> None:
        # Operations count too, since a form that is drawn again is not part of the page's content.
        nonlocal left
        left -= 1
        if left < 0:
            raise ContentTooLarge

    number = 0
    try:
        reader = PdfReader(io.BytesIO(raw))
        if reader.is_encrypted:
            raise ValueError("it is encrypted")
        if len(reader.pages) > MAX_PAGES:
            raise ValueError(f"it has more than {MAX_PAGES} pages")
        for number, page in enumerate(reader.pages, 1):
            contents = page.get_contents()
            left -= 0 if contents is None else len(contents.get_data())
            if left < 0:
                raise ContentTooLarge
            text = page.extract_text(visitor_operand_before=count_operation)
            if left < 0:
                # pypdf logs errors inside of forms and goes on.
                raise ContentTooLarge
            yield number, SURROGATES.sub("\ufffd", text).replace("\0", "") + "\n\n"
    except ContentTooLarge:
        raise ContentTooLarge(
            f"only the pages before page {number} are read; the file unpacks to more than "
            f"{CONTENT_FACTOR} times its size"
        ) from None
    except (PyPdfError, RecursionError, *BROKEN_PDF_ERRORS) as error:
        raise ValueError(f"not a valid PDF ({error})") from None
