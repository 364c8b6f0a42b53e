"""Make a folder of several hundred real documents in twelve languages, for benchmarks/questions.py.

The documents are pages of GNOME's help and manual pages, from packages of Debian. Each page is
written in one language only, so that a question in another language has exactly one answer.

    python -m benchmarks.question_folder FOLDER --download DEBS

`--download DEBS` fetches the packages into the folder DEBS with `apt-get download`, unless they are
there. Without it, pages are taken from the packages that are installed (`--root` names another root
of a file system). The documents are not part of this repository.
"""

import argparse
import gzip
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

LANGUAGES = "en de fr es ja ru zh_CN it pl ko pt_BR cs".split()

HELP_CYCLE = "en de fr es en ja ru zh_CN it en pl ko pt_BR cs".split()
"""The languages of GNOME's help, page by page in alphabetical order. As in many folders, more is in
English than in any other language."""

MANUAL_LANGUAGES = {"de": 20, "fr": 20, "es": 20, "ja": 20, "ru": 20, "pl": 20, "zh_CN": 20}
"""The number of manual pages in each language."""

ENGLISH_MANUALS = 60

MAX_UNTRANSLATED = 0.2
"""The share of a page's paragraphs that may still be in English. The next language of the cycle
takes the page otherwise."""

MANUAL_CHARACTERS = range(1_200, 6_000)
"""The lengths of the manual pages that are taken: the folder shall be indexed in a few minutes."""

PACKAGES = "gnome-user-docs manpages".split() + [
    f"manpages-{name}" for name in "de fr es ja ru pl zh".split()
]

MALLARD = "{http://projectmallard.org/1.0/}"


def make_folder(target: Path, root: Path) -> None:
    """Write one text per page below `target`; `root` is a file system with the packages."""
    number = 0
    for name, text in [*help_pages(root), *manual_pages(root)]:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        number += 1
    if not number:
        raise SystemExit(f"{root} has no GNOME help and no manual pages; see --download")


def help_pages(root: Path) -> Iterator[tuple[str, str]]:
    """Every page of GNOME's help as Markdown, in the language of its turn."""
    help_root = root / "usr/share/help"
    for number, page in enumerate(sorted((help_root / "C/gnome-help").glob("*.page"))):
        english = help_blocks(page)
        for turn in range(number, number + len(HELP_CYCLE)):
            language = HELP_CYCLE[turn % len(HELP_CYCLE)]
            source = help_root / ("C" if language == "en" else language) / "gnome-help" / page.name
            blocks = help_blocks(source) if source.exists() else english
            untranslated = sum(block in english for block in blocks) / max(len(blocks), 1)
            if language == "en" or untranslated <= MAX_UNTRANSLATED:
                yield f"help/{language}/{page.stem}.md", "\n\n".join(blocks) + "\n"
                break


def help_blocks(page: Path) -> list[str]:
    """The headings and paragraphs of a page of help."""
    return list(mallard_blocks(ElementTree.parse(page).getroot(), 1))


def mallard_blocks(element: ElementTree.Element, level: int) -> Iterator[str]:
    """The headings and paragraphs below an element of a page of help."""
    for child in element:
        tag = child.tag.removeprefix(MALLARD) if isinstance(child.tag, str) else ""
        text = " ".join("".join(child.itertext()).split())
        if tag == "title" and text:
            yield f"{'#' * level} {text}"
        elif tag in ("p", "screen", "code") and text:
            yield text
        elif tag == "section":
            yield from mallard_blocks(child, level + 1)
        elif tag not in ("info", "title", "p", "screen", "code", "media", ""):
            yield from mallard_blocks(child, level)


def manual_pages(root: Path) -> Iterator[tuple[str, str]]:
    """Manual pages as Markdown. Every page is there in one language only."""
    manuals = root / "usr/share/man"
    taken, texts = set[str](), set[str]()
    for language, count in [*MANUAL_LANGUAGES.items(), ("en", ENGLISH_MANUALS)]:
        folder = manuals if language == "en" else manuals / language
        pages = sorted(folder.glob("man[1-8]/*.gz"), key=lambda page: page.name)
        chosen: list[tuple[str, str]] = []
        for page in pages:
            name = page.name.removesuffix(".gz")
            # Character sets have dozens of pages that differ in little but a number.
            if name in taken or re.match("iso.?8859|latin|cp125", name):
                continue
            raw = gzip.decompress(page.read_bytes())
            try:
                text = roff_text(raw.decode())
            except UnicodeDecodeError:
                continue
            if len(text) in MANUAL_CHARACTERS and "\\n" not in text and text not in texts:
                chosen.append((name, text))
                texts.add(text)
        step = max(1, len(chosen) // count)
        for name, text in chosen[::step][:count]:
            taken.add(name)
            yield f"man/{language}/{name}.md", text


ESCAPES = [
    (re.compile(r'\\".*'), ""),
    (re.compile(r"\\f(\[[^]]*\]|\(..|.)"), ""),
    (re.compile(r"\\s[-+]?\d"), ""),
    (re.compile(r"\\\*?\((aq|cq|oq)"), "'"),
    (re.compile(r"\\\*?\((lq|rq|dq)"), '"'),
    (re.compile(r"\\\(bu"), "•"),
    (re.compile(r"\\\((em|en|hy)"), "–"),
    (re.compile(r"\\(\*)?(\(..|\[[^]]*\])"), ""),
    (re.compile(r"\\[&%|^:/,c]"), ""),
    (re.compile(r"\\-"), "-"),
    (re.compile(r"\\e"), r"\\"),
    (re.compile(r"\\~"), " "),
    (re.compile(r"\\(.)"), r"\1"),
]

FONTS = "B I R BR RB BI IB IR RI SB SM".split()


def roff_text(source: str) -> str:
    """The text of a manual page as Markdown; "" if it is written in mdoc."""
    lines: list[str] = []
    for line in source.splitlines():
        if line.startswith((".Dd", ".so")):
            return ""
        macro, _, rest = line[1:].strip().partition(" ") if line[:1] in (".", "'") else ("", "", "")
        rest = rest.strip()
        if line[:1] not in (".", "'"):
            lines.append(line)
        elif macro in ("SH", "SS"):
            lines += ["", f"{'##' if macro == 'SH' else '###'} " + rest.strip('"'), ""]
        elif macro == "TH":
            parts = rest.split()
            lines += [f"# {parts[0].lower()}({parts[1]})" if len(parts) > 1 else "# " + rest, ""]
        elif macro in FONTS:
            words = re.findall(r'"[^"]*"|\S+', rest)
            lines.append(("" if len(macro) == 2 else " ").join(word.strip('"') for word in words))
        elif macro in ("TP", "PP", "P", "LP", "IP", "HP", "br", "sp", "RS", "RE"):
            lines.append("")
            if macro == "IP" and rest:
                lines.append(rest.split('"')[1] if rest.startswith('"') else rest.split()[0])
    text = "\n".join(lines)
    for pattern, plain in ESCAPES:
        text = pattern.sub(plain, text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def download(folder: Path) -> None:
    """Fetch the packages with apt-get, if they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in PACKAGES if not list(folder.glob(f"{name}_*.deb"))]
    if missing:
        subprocess.run(["apt-get", "download", *missing], cwd=folder, check=True)


def main() -> None:
    """Make the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--download", type=Path, metavar="DEBS")
    parser.add_argument("--root", type=Path, default=Path("/"))
    chosen = parser.parse_args()
    if chosen.download is None:
        make_folder(chosen.folder, chosen.root)
        return
    download(chosen.download)
    with tempfile.TemporaryDirectory() as root:
        for name in PACKAGES:
            for package in chosen.download.glob(f"{name}_*.deb"):
                subprocess.run(["dpkg-deb", "-x", package, root], check=True)
        make_folder(chosen.folder, Path(root))


if __name__ == "__main__":
    main()
