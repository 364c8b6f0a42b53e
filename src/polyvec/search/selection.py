"""Which files of a folder are read, and what is said of the others.

1. The user's patterns come first: `include` and `exclude`.
2. Files that `.gitignore` names are left out, and so are virtual environments, caches, the folders
   of builds and of packages, and lock files; `all_files` reads them.
3. Files for which there is no reader are left out, and those whose names do not say what they are
   if they begin as binary files do.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec

from polyvec.search.documents import KINDS, PACKED, find_kind
from polyvec.search.readers.encodings import looks_binary
from polyvec.search.readers.rows import MAX_ROWS

GENERATED_FOLDERS = frozenset(
    "__pycache__ _build bower_components build buck-out dist htmlcov node_modules site-packages "
    "target venv virtualenv".split()
)
"""Folders of generated files and of copies."""

FOLDER_MARKS = ("pyvenv.cfg", "bin/activate", "conda-meta", "CACHEDIR.TAG")
"""A folder with one of these holds a virtual environment, or a cache."""

GENERATED_NAMES = frozenset(
    "cargo.lock composer.lock package-lock.json pnpm-lock.yaml poetry.lock uv.lock "
    "yarn.lock".split()
)
"""Files that programs write for themselves, in lower case."""

IGNORE_FILE = ".gitignore"

SNIFFED_BYTES = 8_192
"""The bytes at the beginning of a file that tell whether it is text."""

MAX_SHOWN_KINDS = 12
"""Further kinds of files that are passed over are counted together."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The files of a folder that are read, and how much of a table."""

    include: Sequence[str] = ()
    """Patterns as in `.gitignore`. If there are any, a file must match one."""

    exclude: Sequence[str] = ()
    """Patterns of files and folders that are not read."""

    all_files: bool = False
    """Whether files are read that `.gitignore` names, and generated ones."""

    max_rows: int = MAX_ROWS
    """The rows that are read of each table."""


EVERYTHING = Selection()
"""What is read if nothing is asked for."""


@dataclass(slots=True)
class PassedOver:
    """What was passed over. Hidden files and folders are not counted."""

    counts: Counter[str] = field(default_factory=Counter)
    """The number of files, or of folders, by the end of their names or by the reason."""

    missing: Counter[str] = field(default_factory=Counter)
    """The number of files that need a package, by a sentence that says how to install it."""

    def sentences(self) -> Iterator[str]:
        """Yield one sentence for each missing package, and one for all the rest."""
        for reason, count in sorted(self.missing.items()):
            yield f"{count:,} {'files need' if count > 1 else 'file needs'} {reason}"
        if self.counts:
            kinds = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
            shown = [f"{count:,} {kind}" for kind, count in kinds[:MAX_SHOWN_KINDS]]
            if rest := sum(count for _, count in kinds[MAX_SHOWN_KINDS:]):
                shown.append(f"{rest:,} others")
            yield "passed over " + ", ".join(shown)


IgnoreRules = list[tuple[str, GitIgnoreSpec]]
"""The rules of `.gitignore` files, the outermost first, each with its folder in the repository."""


class Rules:
    """The rules for the files of one folder and the folders below it, which are entered in turn."""

    def __init__(self, folder: Path, selection: Selection) -> None:
        """Raises ValueError if a pattern of the selection is none."""
        self._folder, self._selection = folder, selection
        self._include = GitIgnoreSpec.from_lines(selection.include)
        self._exclude = GitIgnoreSpec.from_lines(selection.exclude)
        self._prefix, outer = ("", []) if selection.all_files else _outer_rules(folder)
        self._by_folder: dict[str, IgnoreRules] = {"": outer}
        self._rules: IgnoreRules = outer

    def enter(self, inside: str, names: Sequence[str]) -> None:
        """Go on with a folder, whose path below the first one ends with `/`, and its files."""
        self._rules = self._by_folder.pop(inside, [])
        if not self._selection.all_files and IGNORE_FILE in names:
            spec = _read_rules(self._folder / inside / IGNORE_FILE)
            self._rules = [*self._rules, (self._prefix + inside, spec)]

    def why_not_folder(self, folder: Path, inside: str) -> str:
        """The reason why a folder of the one that was entered is passed over; "" if it is not."""
        if self._exclude.match_file(inside):
            return "by --exclude"
        if not self._selection.all_files:
            marks = (folder / mark for mark in FOLDER_MARKS)
            if folder.name in GENERATED_FOLDERS or any(mark.exists() for mark in marks):
                return f"{folder.name}/"
            if self._is_ignored(inside):
                return "by .gitignore"
        self._by_folder[inside] = self._rules
        return ""

    def why_not_file(self, file: Path, inside: str) -> str:
        """The reason why a file of the folder that was entered is passed over; "" if it is not."""
        if self._selection.include and not self._include.match_file(inside):
            return "by --include"
        if self._exclude.match_file(inside):
            return "by --exclude"
        if not self._selection.all_files:
            if self._is_ignored(inside):
                return "by .gitignore"
            if file.name.lower() in GENERATED_NAMES:
                return file.name
        suffix = PurePosixPath(file.name.lower()).suffix
        if find_kind(file.name) is None:
            return suffix
        is_named = PurePosixPath(file.name.lower().removesuffix(PACKED)).suffix in KINDS
        if not is_named and suffix != PACKED and _is_binary(file):
            return suffix or "without a suffix"
        return ""

    def _is_ignored(self, inside: str) -> bool:
        """Whether the last rule that matches the path says so."""
        for place, spec in reversed(self._rules):
            verdict = spec.check_file((self._prefix + inside).removeprefix(place)).include
            if verdict is not None:
                return verdict
        return False


def is_searched(path: PurePosixPath, selection: Selection = EVERYTHING) -> bool:
    """Whether a file with this path below a folder may be searched, as far as names tell."""
    if not selection.all_files and path.name.lower() in GENERATED_NAMES:
        return False
    return not is_hidden(path, selection) and find_kind(path.name) is not None


def is_hidden(path: PurePosixPath, selection: Selection = EVERYTHING) -> bool:
    """Whether a file or folder with this path is hidden, or lies in a folder that is left out."""
    is_generated = not selection.all_files and GENERATED_FOLDERS.intersection(path.parts)
    return bool(is_generated) or any(part.startswith(".") for part in path.parts)


def _is_binary(file: Path) -> bool:
    """Whether a file, whose name does not say what it is, is no text; if so, nobody misses it."""
    try:
        if not file.is_file():
            return False
        with file.open("rb") as opened:
            return looks_binary(opened.read(SNIFFED_BYTES))
    except OSError:
        # Reading it gives the reason.
        return False


def _outer_rules(folder: Path) -> tuple[str, IgnoreRules]:
    """The path of the folder in its repository, and the rules of the folders above it there."""
    root = folder.resolve()
    above = list[Path]()
    for parent in [root, *root.parents]:
        above.append(parent)
        if (parent / ".git").exists():
            break
    else:
        return "", []
    top = above[-1]
    prefix = _path_below(root, top)
    rules = IgnoreRules()
    for parent in reversed(above[1:]):
        if (parent / IGNORE_FILE).is_file():
            place, spec = _path_below(parent, top), _read_rules(parent / IGNORE_FILE)
            # Whoever names an ignored folder wants to search it.
            if not spec.match_file(prefix.removeprefix(place)):
                rules.append((place, spec))
    return prefix, rules


def _path_below(folder: Path, top: Path) -> str:
    return "" if folder == top else folder.relative_to(top).as_posix() + "/"


def _read_rules(file: Path) -> GitIgnoreSpec:
    """The rules of a file. Lines that are no patterns are left out, as Git does."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    try:
        return GitIgnoreSpec.from_lines(lines)
    except ValueError:
        return GitIgnoreSpec.from_lines([line for line in lines if _is_pattern(line)])


def _is_pattern(line: str) -> bool:
    try:
        GitIgnoreSpec.from_lines([line])
    except ValueError:
        return False
    return True
