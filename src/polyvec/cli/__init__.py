"""The command line.

Each verb has a file in this folder: NAME.py defines NAME, which is a function, or an `App` with
verbs of its own. The verb's docstring is its help. The files import their room only when the verb
is called, so `--help` is quick and works without extras.
"""

import errno
import os
import sys
import warnings
from collections.abc import Sequence
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, TextIO

from cyclopts import App, CycloptsError, Parameter

from polyvec.cli.usage import explain
from polyvec.terminal import ExitStatus, note, show_every_character

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console, ConsoleOptions

EXTRAS = {
    "bm25s": ("train", "eval"),
    "datasets": ("eval",),
    "datasketch": ("train",),
    "filelock": ("search", "server"),
    "httptools": ("server",),
    "httpx": ("eval",),
    "huggingface_hub": ("hub",),
    "lancedb": ("search",),
    "markdown_it": ("eval",),
    "matplotlib": ("search", "train", "eval"),
    "mteb": ("eval",),
    "opentelemetry": ("traces",),
    "orjson": ("server",),
    "prometheus_client": ("server",),
    "py3langid": ("train",),
    "pyarrow": ("search", "train", "eval"),
    "pydantic": ("server",),
    "pypdf": ("search",),
    "pytrec_eval": ("eval",),
    "scipy": ("search", "server", "train", "eval"),
    "sentence_transformers": ("eval",),
    "sklearn": ("search", "train", "eval"),
    "starlette": ("server",),
    "tensorboard": ("train",),
    "threadpoolctl": ("search", "server"),
    "torch": ("torch", "train", "eval"),
    "uvicorn": ("server",),
    "watchfiles": ("search",),
}
"""The extras that install a package which may be missing. The extra with the verb's own name is
recommended, else the first."""

NOT_VERBS = {"reference", "usage"}
"""Files of this folder that define no verb."""

KEPT = {
    "embed": "lines that were printed are complete, and an output file is not changed",
    "eval": "the scores of the tasks that were finished are kept",
    "search": "the passages that were indexed are kept, and the next search goes on with the rest",
    "train": "the checkpoints that were written are kept",
}
"""What is kept of the work of a verb that Ctrl-C interrupts, if anything is."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")
"""The variables from which numerical libraries and the tokenizer read their number of threads."""

EVERY_VERB = "Every verb also has --threads N: how many threads encode on the CPU."


OUTPUT_ERRORS = {errno.EBADF, errno.EIO, errno.ENOSPC}
"""Errors of a standard output that is closed or full. An error of a file names the file."""


class _Reflow:
    """Cyclopts' help, with the lines of each paragraph of a docstring joined."""

    def __call__(self, console: "Console", options: "ConsoleOptions", panel: "HelpPanel") -> None:
        from cyclopts.help.formatters import DefaultFormatter

        for entry in panel.entries:
            _join_lines(entry.description)
        DefaultFormatter()(console, options, panel)

    def render_usage(self, console: "Console", options: "ConsoleOptions", usage: Any) -> None:
        from cyclopts.help.formatters import DefaultFormatter

        DefaultFormatter().render_usage(console, options, usage)

    def render_description(
        self, console: "Console", options: "ConsoleOptions", description: Any
    ) -> None:
        _join_lines(description)
        console.print(description)


def _join_lines(description: Any) -> None:
    from rich.text import Text

    text = getattr(description, "primary_renderable", None)
    if isinstance(text, Text):
        paragraphs = text.plain.split("\n\n")
        text.plain = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def show_default(value: Any) -> Any:
    """Return what help says of a default, or None to say nothing: of an absent flag or text."""
    if isinstance(value, tuple):
        value = ", ".join(map(str, value))
    return None if value is False or value == "" else value


app = App(
    name="polyvec",
    help="Multilingual, multi-task text embeddings: encode texts, and search files by meaning.",
    help_format="plaintext",
    help_epilogue=EVERY_VERB,
    help_formatter=_Reflow(),
    # A flag has no opposite: `--json`, and no `--no-json`.
    default_parameter=Parameter(negative=(), show_default=show_default),
    version=lambda: _version(),
    version_flags=["--version"],
    result_action="return_value",
)

VERBS = [module.name for module in iter_modules(__path__) if module.name not in NOT_VERBS]

for verb in VERBS:
    # A name to import. Only the file of the verb that is called is imported.
    app.command(f"{__name__}.{verb}:{verb}", name=verb)


def main() -> None:
    """Run the command line and end the process with an `ExitStatus`."""
    # LanceDB reports every table it creates as a warning, unless told before it is imported.
    os.environ.setdefault("LANCEDB_LOG", "error")
    _open_streams()
    show_every_character()
    warnings.showwarning = _show_warning
    status = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # It was reported above. Python would report it again at exit.
            _discard(stream)
    sys.exit(status)


def _open_streams() -> None:
    """Connect each standard stream that was closed from the start (`>&-`) to the null device.

    Otherwise Python sets it to None, and the next file that is opened would take its place. A verb
    that writes to a closed standard output fails, since nobody can read its answer: the device is
    opened for reading only.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDONLY if name == "stdout" else os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            # It stays open until the process ends.
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def _discard(stream: TextIO) -> None:
    """Let what the stream still holds go to the null device."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run(words: Sequence[str]) -> ExitStatus:
    """Return the exit status of a command. Report an error as one sentence on standard error."""
    verb = ""
    try:
        words = _limit_threads(words)
        if words[:1] == ["help"]:
            words = [*words[1:], "--help"]
        verb = words[0] if words else ""
        if verb not in VERBS:
            import_verbs()
        status = app(words, print_error=False, exit_on_error=False)
        sys.stdout.flush()
        return ExitStatus.DONE if status is None else status
    except BrokenPipeError:
        # The reader of our output has enough. Python would report the closed pipe again at exit.
        _discard(sys.stdout)
        return ExitStatus.DONE
    except KeyboardInterrupt:
        note(f"interrupted; {KEPT.get(verb, 'no file was changed')}")
        return ExitStatus.INTERRUPTED
    except ImportError as error:
        # Cyclopts wraps the error of a module that it cannot import.
        missing = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        package = (missing.name or "").split(".")[0]
        if package not in EXTRAS:
            note(f"{missing}: the installation is damaged; install polyvec again")
            return ExitStatus.REFUSED
        extra = verb if verb in EXTRAS[package] else EXTRAS[package][0]
        note(f"this command needs {package}: pip install 'polyvec[{extra}]'")
    except OSError as error:
        name = error.filename or ("standard output" if error.errno in OUTPUT_ERRORS else "")
        note(f"{name}: {error.strerror or error}" if name else str(error.strerror or error))
    except CycloptsError as error:
        note(explain(error, words))
    except ValueError as error:
        note(" ".join(str(error).split()))
    return ExitStatus.REFUSED


def _limit_threads(words: Sequence[str]) -> list[str]:
    """Return the words without --threads, whose value goes where libraries look for it.

    Raises ValueError unless it is a whole number from 1 on.
    """
    end = words.index("--") if "--" in words else len(words)
    for place, word in enumerate(words[:end]):
        name, sign, value = word.partition("=")
        if name != "--threads":
            continue
        after = place + 1 if sign else place + 2
        value = value if sign else "".join(words[place + 1 : after])
        if not (value.isascii() and value.isdigit() and int(value) > 0):
            raise ValueError(f'--threads is "{value}", must be a whole number from 1 on')
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, value))
        return [*words[:place], *words[after:]]
    return list(words)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning of polyvec as a note, and any other as Python does."""
    if category.__module__.startswith("polyvec."):
        note(str(message))
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def import_verbs() -> None:
    """Import the files of all verbs. `polyvec --help` shows the first lines of their help."""
    for verb in VERBS:
        app[verb]


def _version() -> str:
    from importlib.metadata import version

    return version("polyvec")
