"""The command line.

Each verb has a file in this folder: NAME.py defines NAME, which is a function, or an `App` with
verbs of its own. The verb's docstring is its help. The files import their room only when the verb
is called, so `--help` is quick and works without extras.
"""

import os
import sys
from collections.abc import Sequence
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, TextIO

from cyclopts import App, CycloptsError, Parameter

from polyvec.terminal import ExitStatus, note

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

NOT_VERBS = {"inputs", "reference"}
"""Files of this folder that define no verb."""


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

    Otherwise Python sets it to None, and the next file that is opened would take its place.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
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
    verb = words[0] if words else ""
    try:
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
        return ExitStatus.INTERRUPTED
    except ImportError as error:
        # Cyclopts wraps the error of a module that it cannot import.
        missing = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        package = (missing.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        extra = verb if verb in EXTRAS[package] else EXTRAS[package][0]
        note(f"this command needs {package}: pip install 'polyvec[{extra}]'")
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        note(f"{name}{error.strerror or error}")
    except (ValueError, CycloptsError) as error:
        note(" ".join(str(error).split()))
    return ExitStatus.REFUSED


def import_verbs() -> None:
    """Import the files of all verbs. `polyvec --help` shows the first lines of their help."""
    for verb in VERBS:
        app[verb]


def _version() -> str:
    from importlib.metadata import version

    return version("polyvec")
