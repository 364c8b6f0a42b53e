"""Text to tokens, with each token's place in the caller's text.

The instruction goes before the text as a string, as in the original, so the ids are those of the
two tokenised as one. Counting, truncation and offsets are settled here and nowhere else.

Axes in this file: T tokens of one text.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import models

MAX_FILE = 100_000_000
"""Bytes of tokenizer.json that are read; XLM-RoBERTa's has 17 million."""

SURROGATES = re.compile("[\ud800-\udfff]")
"""Halves of a pair, which no UTF-8 text can hold; Python strings can."""

REPLACEMENT = "\ufffd"
"""Stands for each of them: one character for one, so that offsets hold."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """One text as the model reads it: `<s>`, the instruction, the text, `</s>`."""

    ids: Int32[np.ndarray, " T"]
    """Rows of the token table."""

    offsets: Int32[np.ndarray, "T 2"]
    """Each token's characters [start, end) in the caller's text, without the instruction.

    `<s>` and the instruction's tokens have (0, 0); `</s>` has an empty span at the end of what was
    read. A character spelt by several tokens, an emoji by its bytes say, is in the span of each.
    """

    num_prompt: int
    """Tokens before the text's own: `<s>` and the instruction."""

    truncated: bool
    """Whether tokens of the text were left out."""

    def find_spans(
        self, text: str, chunks: Sequence[tuple[int, int]]
    ) -> tuple[Int32[np.ndarray, " S"], Int32[np.ndarray, " S"]]:
        """The tokens [start, end) of each chunk, given as characters [start, end) of `text`.

        A token belongs to every chunk that holds one of its characters other than the space
        before a word. Whoever has the text's first token has `<s>` and the instruction too, and
        whoever has the last one has `</s>`. No span is empty: a chunk without a token of its own
        takes the one that follows it, be it `</s>`.
        """
        first, last = self.num_prompt, len(self.ids) - 1
        own = self.offsets[first:last].tolist()
        limits = np.array(chunks, np.int64).reshape(-1, 2)
        lefts = np.searchsorted(self.offsets[first:last, 1], limits[:, 0], "right").tolist()
        rights = np.searchsorted(self.offsets[first:last, 0], limits[:, 1], "left").tolist()
        spans = np.empty((2, len(limits)), np.int32)
        for number, (start, end) in enumerate(chunks):
            left, right = lefts[number], rights[number]
            while (
                left < right and own[right - 1][1] > end and text[own[right - 1][0] : end].isspace()
            ):
                right -= 1
            while left < right and own[left][0] < start and text[start : own[left][1]].isspace():
                left += 1
            if left >= right:
                left = min(lefts[number], len(own))
                right = left + 1
            # Tokens before the text go with its first token, `</s>` with the last.
            spans[0, number] = first + left if left else 0
            spans[1, number] = last + 1 if right >= len(own) else first + right
        return spans[0], spans[1]

    def split(self, size: int, num_characters: int) -> list[tuple[int, int]]:
        """Chunks of `size` of the text's own tokens each, as characters [start, end).

        They lie end to end and cover the text's `num_characters`. A chunk is a few tokens larger
        where a character spelt by several tokens would else be cut in two.
        """
        if size < 1:
            raise ValueError(f"chunks is {size}, must be at least 1 token")
        starts, ends = self.offsets[self.num_prompt : -1].T.tolist()
        edges, token = [0], size
        while token < len(starts):
            if starts[token] < ends[token - 1]:
                token += 1
                continue
            edges.append(starts[token])
            token += size
        return list(pairwise([*edges, num_characters]))


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A model's tokenizer.json and the longest text it lets through.

    Any string is read, none raises: an empty one is `<s></s>`, and spaces, NUL or a byte order
    mark become what the vocabulary has for them. Lone surrogates become U+FFFD. Time is linear
    in the length, also of a single word.
    """

    max_tokens: int
    """The most tokens of a text, special tokens and instruction included."""

    path: Path
    """The tokenizer.json that was read."""

    vocab_size: int
    """One more than the largest id; a model needs as many rows in its token table."""

    core: tokenizers.Tokenizer = field(repr=False)
    """The library's tokenizer, with neither truncation nor padding."""

    @classmethod
    def load(cls, folder: Path, max_tokens: int) -> "Tokenizer":
        """The tokenizer of a model folder.

        Raises ValueError if tokenizer.json is missing, too large or damaged, or does not put one
        token before a text and one after it.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"{path} is missing; copy it from the model that this one is made of")
        if path.stat().st_size > MAX_FILE:
            raise ValueError(f"{path} has more than {MAX_FILE:,} bytes, so it is no tokenizer")
        try:
            core = tokenizers.Tokenizer.from_file(str(path))
        # The library raises a plain Exception for every damage.
        except Exception as error:
            raise ValueError(f"{path} is damaged ({error}); download it again") from None
        core.no_truncation()
        core.no_padding()
        if len(core.encode("").ids) != 2 or core.num_special_tokens_to_add(is_pair=False) != 2:
            raise ValueError(f"{path} must put <s> before a text and </s> after it")
        if max_tokens < 2:
            raise ValueError(f"max_tokens is {max_tokens}, must leave room for <s> and </s>")
        ids = set(core.get_added_tokens_decoder())
        if isinstance(core.model, models.Unigram):
            # A list, so no number is skipped; the whole vocabulary would take a tenth of a second.
            ids.add(core.get_vocab_size(with_added_tokens=False) - 1)
        else:
            ids.update(core.get_vocab(with_added_tokens=False).values())
        return cls(max_tokens, path, 1 + max(ids), core)

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that stand for no text: `<s>`, `</s>`, `<pad>`, `<unk>` and `<mask>`."""
        added = self.core.get_added_tokens_decoder()
        return frozenset(number for number, token in added.items() if token.special)

    def encode(
        self, texts: Sequence[str], prompts: Sequence[str], *, truncate: bool = True
    ) -> list[Tokens]:
        """Each text's tokens, its prompt before it ("" for none).

        What exceeds `max_tokens` is cut off the end of the text, unless `truncate` is False;
        `</s>` stays.
        """
        assert len(texts) == len(prompts)
        whole = [
            SURROGATES.sub(REPLACEMENT, prompt + text)
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        encodings = self.core.encode_batch(whole)
        max_tokens = self.max_tokens if truncate else None
        return [
            _read_encoding(encoding, len(prompt), max_tokens)
            for encoding, prompt in zip(encodings, prompts, strict=True)
        ]

    def count(self, text: str) -> int:
        """How many tokens the whole text has, `<s>` and `</s>` included, before truncation."""
        return len(self.core.encode(SURROGATES.sub(REPLACEMENT, text)))

    def files(self) -> dict[str, bytes]:
        """What lets other tools load this tokenizer, to be written beside a model's weights."""
        names = {
            "bos_token": "<s>",
            "cls_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "mask_token": "<mask>",
        }
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.max_tokens,
            # A name that is not in the vocabulary would be added to it, beyond the token table.
            **{key: name for key, name in names.items() if self.core.token_to_id(name) is not None},
        }
        text = json.dumps(settings, indent=2) + "\n"
        return {"tokenizer.json": self.path.read_bytes(), "tokenizer_config.json": text.encode()}


def _read_encoding(encoding: tokenizers.Encoding, prompt: int, max_tokens: int | None) -> Tokens:
    """An encoding, truncated, its offsets moved back by the prompt's characters."""
    ids = np.array(encoding.ids, np.int32)
    offsets = np.array(encoding.offsets, np.int32)
    num_prompt = 1
    if prompt:
        # A token of the text may begin with the prompt's last space.
        own = np.flatnonzero(offsets[1:-1, 1] > prompt)
        num_prompt = 1 + int(own[0]) if len(own) else len(ids) - 1
        offsets = (offsets - prompt).clip(0)
    truncated = False
    if max_tokens is not None and len(ids) > max_tokens:
        truncated, kept = True, max_tokens - 1
        ids = np.append(ids[:kept], ids[-1])
        offsets = offsets[: kept + 1]
        num_prompt = min(num_prompt, kept)
    offsets[:num_prompt] = 0
    offsets[-1] = offsets[-2, 1]
    return Tokens(ids, offsets, num_prompt, truncated)
