"""The process that reads PDFs for `pdf_pages`: a script that imports nothing of polyvec.

PDFium is a program in C++ that a damaged file could make crash, or keep busy without end. It reads
each file here, where this harms nobody.

For each line `BYTES PAGES CHARACTERS SECONDS` on standard input, and as many bytes of a PDF behind
it, lines of JSON are written: `{"page": 1, "text": "..."}` for each page, and `{"end": reason}`,
whose reason is empty if all pages were read. The limits end the reading before.
"""

import json
import signal
import sys
from collections.abc import Iterator

import pypdfium2

MEMORY_BYTES = 2**30

PASSWORD_ERROR = 4
"""PDFium's number for a file that needs a password to be opened."""


def read_pages(raw: bytes, max_pages: int, max_characters: int) -> Iterator[dict[str, object]]:
    """Yield a reply for each page, and one for the end."""
    try:
        document = pypdfium2.PdfDocument(raw)
    except pypdfium2.PdfiumError as error:
        is_locked = error.err_code == PASSWORD_ERROR
        yield {"end": "it needs a password" if is_locked else "not a valid PDF"}
        return
    damaged = list[int]()
    left = max_characters
    for number in range(1, len(document) + 1):
        if number > max_pages:
            yield {"end": f"only the first {max_pages:,} pages are read"}
            return
        try:
            page = document[number - 1]
            content = page.get_textpage()
        except pypdfium2.PdfiumError:
            damaged.append(number)
            continue
        text = content.get_text_range()
        content.close()
        page.close()
        left -= len(text)
        if left < 0:
            end = f"only the pages before page {number} are read; they show much more than the file"
            yield {"end": f"{end} holds"}
            return
        yield {"page": number, "text": text}
    pages = ", ".join(map(str, damaged[:10])) + ", ..." * (len(damaged) > 10)
    yield {"end": f"pages of this PDF are damaged: {pages}" if damaged else ""}


def main() -> None:
    """Answer until standard input ends."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, ValueError, OSError):
        # Not all systems can limit the memory of a process.
        pass
    while header := sys.stdin.buffer.readline():
        num_bytes, max_pages, max_characters, seconds = map(int, header.split())
        raw = sys.stdin.buffer.read(num_bytes)
        if hasattr(signal, "alarm"):
            # If the program that asks was killed, nobody else ends this one.
            signal.alarm(2 * seconds)
        for reply in read_pages(raw, max_pages, max_characters):
            sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
            sys.stdout.buffer.flush()
        if hasattr(signal, "alarm"):
            signal.alarm(0)


if __name__ == "__main__":
    main()
