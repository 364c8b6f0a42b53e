"""The rule for texts that are longer than the model reads, and what it has cut.

The rule is the same in Python, on the command line and in the API: such a text loses its end or its
start, or it is an error. In Python and on the command line the default is "end", with a warning. In
the API the default is "error", as in Jina's.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from polyvec.outputs import name_rows
from polyvec.tokenizer import Tokens

Truncate = Literal["end", "start", "error"]
"""What a text that is too long loses, or that it is an error."""


class TooLongError(ValueError):
    """Some texts are longer than the model reads; `rows` are their positions in the caller's list.

    It is raised only if the caller has chosen `truncate="error"`.
    """

    def __init__(self, rows: list[int], max_tokens: int) -> None:
        super().__init__(
            f"text {name_rows(rows)} (counted from 0) has more than the {max_tokens:,} tokens that "
            "the model reads: split it, or choose to truncate it at its end or its start"
        )
        self.rows = rows


class TruncationWarning(UserWarning):
    """Texts were truncated, because they are longer than the model reads."""


class Truncation:
    """The rule of one call for texts that are too long, and what it has cut."""

    def __init__(self, truncate: Truncate, max_tokens: int) -> None:
        if truncate not in get_args(Truncate):
            raise ValueError(f"truncate is {truncate!r}, must be 'end', 'start' or 'error'")
        self.truncate: Truncate = truncate
        self.max_tokens = max_tokens
        self.num_texts = self.num_characters = 0

    def record(self, first: int, texts: Sequence[str], tokens: Sequence[Tokens]) -> None:
        """Count the truncated texts of a block. Raises TooLongError if they are errors."""
        cut = [number for number, text in enumerate(tokens) if text.truncated]
        if cut and self.truncate == "error":
            raise TooLongError([first + number for number in cut], self.max_tokens)
        self.num_texts += len(cut)
        for number in cut:
            cut_characters = count_cut_characters(texts[number], tokens[number], self.truncate)
            self.num_characters += cut_characters

    def __str__(self) -> str:
        subject = "1 text has" if self.num_texts == 1 else f"{self.num_texts:,} texts have"
        return (
            f"{subject} more than the {self.max_tokens:,} tokens that the model reads: "
            f"{self.num_characters:,} characters at the {self.truncate} were cut"
        )


def count_cut_characters(text: str, tokens: Tokens, truncate: Truncate) -> int:
    """Number of characters of a text that its tokens do not have, at its end or its start."""
    if truncate == "start":
        return int(tokens.offsets[tokens.num_prompt, 0])
    return len(text) - int(tokens.offsets[-1, 1])
