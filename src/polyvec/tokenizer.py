"""Text to tokens, with the position of each token in the caller's text.

As in the original model, the instruction is put before the text as a string, and both are
tokenised together. Counting, truncation and offsets are implemented here and nowhere else.

Axes in this file: T tokens of one text.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import models

from polyvec.checkpoint.storage import find_file, parse_object
from polyvec.tokenizer_check import check_tokenizer

BUNDLED = (Path(__file__).parent / "models" / "mini").resolve()
"""The folder of the model that is part of this package."""

MAX_FILE_BYTES = 100_000_000
"""Largest tokenizer.json that is read. XLM-RoBERTa's has 17 million bytes."""

SURROGATES = re.compile("[\ud800-\udfff]")
"""Halves of a surrogate pair, which Python strings may contain but UTF-8 cannot."""

REPLACEMENT = "\ufffd"
"""Replaces each of them: one character for one, so that offsets stay valid."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The tokens of one text: `<s>`, the instruction, the text, `</s>`."""

    ids: Int32[np.ndarray, " T"]
    """Token ids: rows of the token table."""

    offsets: Int32[np.ndarray, "T 2"]
    """Each token's characters [start, end) in the caller's text, without the instruction.

    `<s>` and the tokens of the instruction have (0, 0). `</s>` has an empty span where the text
    ends or was truncated. If several tokens spell one character, such as the bytes of an emoji, the
    span of each token contains it.
    """

    num_prompt: int
    """Number of tokens before the text: `<s>` and the instruction."""

    truncated: bool
    """Whether tokens of the text were left out."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A model's tokenizer.json, and the length to which it truncates texts.

    Every string can be tokenised. An empty one becomes `<s></s>`; spaces, NUL and a byte order mark
    become what the vocabulary has for them; lone surrogates become U+FFFD. Time is linear in the
    length of the text, even if it is a single word.
    """

    max_tokens: int
    """Longest text in tokens, including special tokens and the instruction."""

    path: Path
    """The tokenizer.json that was read."""

    vocab_size: int
    """One more than the largest token id: the rows that a model's token table needs."""

    core: tokenizers.Tokenizer = field(repr=False)
    """The library's tokenizer, with neither truncation nor padding."""

    @classmethod
    def load(cls, folder: Path, max_tokens: int) -> "Tokenizer":
        """The tokenizer of a model folder.

        Raises ValueError if tokenizer.json is missing, too large or damaged, or if it does not put
        one token before a text and one after it.
        """
        path = find_file(Path(folder), "tokenizer.json")
        if path is None:
            path = Path(folder) / "tokenizer.json"
            raise ValueError(f"{path} is missing; copy it from the model that this one is based on")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(
                f"{path} has more than {MAX_FILE_BYTES:,} bytes, so it is no tokenizer"
            )
        raw = path.read_bytes()
        # Parsing takes as long as the library's own reading; the bundled file is our own.
        if path.parent.resolve() != BUNDLED:
            data = parse_object(raw, str(path))
            try:
                check_tokenizer(data)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        try:
            core = tokenizers.Tokenizer.from_buffer(raw)
        # The library raises a plain Exception for every damaged file.
        except Exception as error:
            raise ValueError(f"{path} is damaged ({error!s:.300}); download it again") from None
        core.no_truncation()
        core.no_padding()
        if len(core.encode("").ids) != 2 or core.num_special_tokens_to_add(is_pair=False) != 2:
            raise ValueError(f"{path} must put <s> before a text and </s> after it")
        if max_tokens < 2:
            raise ValueError(f"max_tokens is {max_tokens}, must leave room for <s> and </s>")
        ids = set(core.get_added_tokens_decoder())
        if isinstance(core.model, models.Unigram):
            # The vocabulary is a list, so it skips no id. Reading it all would take 0.1 s.
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
        """The tokens of each text, with its prompt before it ("" for none).

        Tokens beyond `max_tokens` are removed from the end of the text, unless `truncate` is False;
        `</s>` is kept.
        """
        assert len(texts) == len(prompts)
        whole = [
            SURROGATES.sub(REPLACEMENT, prompt + text)
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        encodings = self.core.encode_batch(whole)
        max_tokens = self.max_tokens if truncate else None
        return [
            _convert_encoding(encoding, len(prompt), max_tokens)
            for encoding, prompt in zip(encodings, prompts, strict=True)
        ]

    def count(self, text: str) -> int:
        """Number of tokens of the text before truncation, including `<s>` and `</s>`."""
        return len(self.core.encode(SURROGATES.sub(REPLACEMENT, text)))

    def files(self) -> dict[str, bytes]:
        """The files with which other tools load this tokenizer, to write beside the weights."""
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
            # transformers would add a missing name to the vocabulary, beyond the token table.
            **{key: name for key, name in names.items() if self.core.token_to_id(name) is not None},
        }
        text = json.dumps(settings, indent=2) + "\n"
        return {"tokenizer.json": self.path.read_bytes(), "tokenizer_config.json": text.encode()}


def _convert_encoding(encoding: tokenizers.Encoding, prompt: int, max_tokens: int | None) -> Tokens:
    """The tokens of an encoding, truncated, with offsets that do not count the prompt."""
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
