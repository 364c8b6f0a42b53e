"""The reference of the command line, as Markdown: `python -m polyvec.cli.reference > docs/cli.md`.

It is made from the docstrings of the verbs, the exit statuses and the table in this file.
"""

import sys
from collections.abc import Iterator
from inspect import cleandoc
from textwrap import fill
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from cyclopts import App, Argument

from polyvec.cli import app, show_default
from polyvec.terminal import ExitStatus

ENVIRONMENT = {
    "LANCEDB_LOG": "The log level of LanceDB. If it is not set, polyvec sets it to error.",
    "LOCAL_RANK": "The number of the GPU that a training process uses. torchrun sets it.",
    "OMP_NUM_THREADS": "How many threads encode on the CPU. --threads N sets it.",
    "OPENAI_API_KEY": "The API key that `polyvec eval run` sends to the server that it scores.",
    "POLYVEC_API_KEYS": "API keys that `polyvec serve` accepts in addition to those of --key-file, "
    "separated by spaces.",
    "POLYVEC_DATA": "The folder of training and evaluation data, if no --data is given.",
}
"""The environment variables that polyvec uses, each with its meaning."""

INTRODUCTION = """
# Command line

This page lists every verb of `polyvec` with its parameters. `polyvec VERB --help` shows the same
text. It is generated from the source code: do not edit it, run `make docs`.

Every verb also has `--threads N`: how many threads encode on the CPU. A text or a file name that
begins with a dash comes after `--`.
"""


def main() -> None:
    """Write the page to standard output."""
    sys.stdout.write(render_reference())


def render_reference() -> str:
    """Return the page."""
    parts = [INTRODUCTION.strip(), "## Verbs", _list_verbs()]
    for words, verb in verbs():
        parts += [f"### {words}", *_describe(words, verb)]
    parts += ["## Exit statuses", _table("status", {str(s.value): s.meaning for s in ExitStatus})]
    variables = {f"`{name}`": meaning for name, meaning in ENVIRONMENT.items()}
    parts += ["## Environment variables", _table("variable", variables)]
    return "\n\n".join(parts) + "\n"


def verbs(group: App = app, words: str = "polyvec") -> Iterator[tuple[str, App]]:
    """Yield every verb with its words, for example "polyvec eval run", in alphabetical order."""
    for name in sorted(name for name in group if not name.startswith("-")):
        verb = group[name]
        if verb.default_command is None:
            yield from verbs(verb, f"{words} {name}")
        else:
            yield f"{words} {name}", verb


def split_help(verb: App) -> tuple[str, list[str], list[str]]:
    """Return the summary, the other paragraphs and the examples of a verb's docstring.

    A paragraph in which a line runs polyvec is an example.
    """
    text = cleandoc(verb.default_command.__doc__ or "").split("\n\nParameters\n")[0]
    summary, *paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
    examples = [part for part in paragraphs if part.startswith("polyvec ") or "| polyvec " in part]
    return summary, [part for part in paragraphs if part not in examples], examples


def parameters(verb: App) -> Iterator[tuple[str, str]]:
    """Yield how each parameter of a verb is written, and its help."""
    for argument in verb.assemble_argument_collection(parse_docstring=True):
        if not argument.parse or not argument.show:
            continue
        form = ", ".join(argument.positives)
        if form.startswith("-") and not argument.is_flag():
            form += _metavar(argument.hint)
        yield form + "..." * argument.is_var_positional(), _describe_parameter(argument)


def _list_verbs() -> str:
    anchors = (
        f"- [{words}](#{words.replace(' ', '-')}): {split_help(verb)[0]}" for words, verb in verbs()
    )
    return "\n".join(_fill(line) for line in anchors)


def _describe(words: str, verb: App) -> Iterator[str]:
    summary, paragraphs, examples = split_help(verb)
    yield _fill(summary, indent="")
    for paragraph in paragraphs:
        yield _fill(paragraph, indent="")
    yield "\n".join(["```sh", *examples, "```"])
    yield "\n".join(_fill(f"- `{form}`: {meaning}") for form, meaning in parameters(verb))


def _describe_parameter(argument: Argument) -> str:
    sentences = [" ".join((argument.parameter.help or "").split())]
    if choices := _choices(argument.hint):
        sentences.append(f"One of: {', '.join(choices)}.")
    default = show_default(argument.field_info.default)
    if argument.required:
        sentences.append("Required.")
    elif default not in (None, argument.field_info.empty):
        sentences.append(f"Default: {default}.")
    return " ".join(sentences)


def _choices(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    return [choice for part in get_args(hint) for choice in _choices(part)]


def _metavar(hint: Any) -> str:
    """Return what follows an option: " INT", or ".NAME FLOAT" for an option with keys."""
    if get_origin(hint) is Literal:
        return " CHOICE"
    parts = [part for part in get_args(hint) if part not in (NoneType, ...)]
    if not parts:
        return f" {hint.__name__.upper()}"
    return ".NAME" * (get_origin(hint) is dict) + _metavar(parts[-1])


def _table(head: str, rows: dict[str, str]) -> str:
    lines = [f"| {head} | meaning |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {meaning} |" for name, meaning in rows.items())])


def _fill(text: str, indent: str = "  ") -> str:
    return fill(text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    main()
