"""One helpful sentence for each mistake in a command line."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import chain

from cyclopts import (
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

OTHER_VERBS = {"encode": "embed", "find": "search", "index": "search", "query": "search"}
"""Verbs of other programs, and ours that does the work."""

OTHER_OPTIONS = {"-n": "--top", "-k": "--top", "--limit": "--top", "--top-k": "--top"}
"""Options of other programs, and ours with the same meaning."""


def explain(error: CycloptsError, words: Sequence[str]) -> str:
    """Return a sentence that says what is wrong with the words of a command, and what is right."""
    verb = " ".join(["polyvec", *(error.command_chain or ())])
    match error:
        case UnknownCommandError():
            return _explain_verb(error, verb)
        case UnknownOptionError():
            return _explain_option(error, verb)
        case UnusedCliTokensError():
            return _explain_words(error.unused_tokens or [], words, verb)
        case MissingArgumentError() if error.argument is not None:
            name = error.argument.name
            needed = f"{name} needs a value" if name.startswith("-") else f"{verb} needs {name}"
            return f"{needed}; `{verb} --help` shows an example"
        case _:
            return " ".join(str(error).split())


def _explain_verb(error: UnknownCommandError, group: str) -> str:
    word = (error.unused_tokens or [""])[0]
    verbs = [name for name in error.app or [] if not name.startswith("-")]
    if " " in word and "search" in verbs:
        return f'there is no verb "{word}"; to search files: polyvec search DIR "{word}"'
    other = OTHER_VERBS.get(word)
    near = [other] if other in verbs else get_close_matches(word, verbs, n=1)
    meant = f'; did you mean "{near[0]}"?' if near else "."
    return f'there is no verb "{word}"{meant} The verbs of {group} are: {", ".join(verbs)}'


def _explain_option(error: UnknownOptionError, verb: str) -> str:
    word = error.token.keyword or error.token.value
    arguments = [argument for argument in error.argument_collection if argument.parse]
    options = [n for n in chain.from_iterable(a.names for a in arguments) if n.startswith("-")]
    other = OTHER_OPTIONS.get(word)
    near: Iterable[str] = [other] if other in options else []
    if not near and " " not in word:
        near = get_close_matches(word.split("=")[0], options, n=1)
    meant = "".join(f"; did you mean {name}?" for name in near) or f"; see `{verb} --help`."
    return f'{verb} has no option "{word}"{meant} A text that begins with a dash comes after "--"'


def _explain_words(unused: Sequence[str], words: Sequence[str], verb: str) -> str:
    """Explain words that are too many: usually a text without quotes, which the shell has split."""
    text = list(unused)
    before = words[: words.index(unused[0])] if unused[0] in words else []
    # The first word of the text was taken for the whole text, unless it is an option or its value.
    if len(before) > 1 and not any(word.startswith("-") for word in before[-2:]):
        text.insert(0, before[-1])
    return (
        f'{verb} does not expect the words "{" ".join(unused)}"; a text of several words needs '
        f'quotes, as in "{" ".join(text)}"'
    )
