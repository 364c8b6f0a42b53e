"""Text to tokens, with the position of each token in the caller's text.

As in the original model, the instruction is put before the text as a string, and both are
tokenised together. Counting, truncation and offsets are implemented here and nowhere else.

Axes in this file: T tokens of one text.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import models

from polyvec.checkpoint.storage import find_file, parse_object
from polyvec.model_folder import BUNDLED
from polyvec.text_pieces import find_cuts, find_piece_end, measure
from polyvec.texts import find_pair_positions, is_inside_pair, replace_surrogates
from polyvec.tokenizer_check import check_tokenizer

MAX_FILE_BYTES = 100_000_000
"""Largest tokenizer.json that is read. XLM-RoBERTa's has 17 million bytes."""

STEP_CHARACTERS = 65_536
"""Characters that one call of the library tokenises, measured in the normal form NFKC, unless a
single word has more. They bound its memory, and the time until another text has its turn."""

SHORT_CHARACTERS = 512
"""A text of this many characters is tokenised without the library's threads, in which it would wait
for longer texts. The library holds Python's lock meanwhile."""

END_CHARACTERS_PER_TOKEN = 32
"""Characters of the end of a long text that are tokenised first, per token that the model reads."""

WHITE_SPACE = re.compile(r"\s+")


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
    become what the vocabulary has for them; the halves of surrogate pairs are joined, and other
    halves become U+FFFD. Time is linear in the length of the text, even if it is a single word, and
    ends where the text is truncated. Memory is that of a piece and of the tokens: a long text is
    tokenised in pieces, between its words. A word of more than `text_pieces.MAX_WORD_CHARACTERS` is
    read as several words.
    """

    max_tokens: int
    """Longest text in tokens, including special tokens and the instruction."""

    path: Path
    """The tokenizer.json that was read."""

    vocab_size: int
    """One more than the largest token id: the rows that a model's token table needs."""

    core: tokenizers.Tokenizer = field(repr=False)
    """The library's tokenizer, with neither truncation nor padding."""

    cuts: str = field(repr=False)
    """The white space before which a long text may be cut into pieces."""

    num_threads: int | None = None
    """Number of pieces that are tokenised at once; None means as many as the library likes."""

    @classmethod
    def load(cls, folder: Path, max_tokens: int, *, num_threads: int | None = None) -> "Tokenizer":
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
        if path.parent.resolve() != BUNDLED.resolve():
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
        return cls(max_tokens, path, 1 + max(ids), core, find_cuts(core), num_threads)

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
        tokens: list[Tokens | None] = [None] * len(texts)
        for step in self.encode_steps(texts, prompts, truncate=truncate):
            for number, text in step:
                tokens[number] = text
        return [text for text in tokens if text is not None]

    def encode_steps(
        self, texts: Sequence[str], prompts: Sequence[str], *, truncate: bool = True
    ) -> Iterator[list[tuple[int, Tokens]]]:
        """Yield the results of `encode` with their positions, after steps of bounded cost.

        A step tokenises pieces of a few texts, so it may complete none of them.
        """
        assert len(texts) == len(prompts)
        max_tokens = self.max_tokens if truncate else None
        waiting = (
            _PartialText(number, prompt + text, len(prompt))
            for number, (text, prompt) in enumerate(zip(texts, prompts, strict=True))
        )
        unfinished: list[_PartialText] = []
        for _ in count():
            pieces, size = list[str](), 0
            for position in count():
                if size >= STEP_CHARACTERS:
                    break
                if position == len(unfinished):
                    text = next(waiting, None)
                    if text is None:
                        break
                    unfinished.append(text)
                piece = unfinished[position].next_piece(self.cuts)
                size += measure(piece)
                pieces.append(piece)
            if not pieces:
                return
            for text, encoding in zip(unfinished, self._encode_pieces(pieces), strict=False):
                text.add(encoding)
            finished = [text for text in unfinished if text.is_finished(max_tokens)]
            unfinished = [text for text in unfinished if not text.is_finished(max_tokens)]
            yield [(text.number, text.convert(max_tokens)) for text in finished]

    def count(self, text: str) -> int:
        """Number of tokens of the text before truncation, including `<s>` and `</s>`."""
        total, start = 2, 0
        while True:
            end = _find_piece_end(text, start, self.cuts)
            [encoding] = self._encode_pieces([replace_surrogates(text[start:end])])
            total += len(encoding) - 2
            start = end
            if start == len(text):
                return total

    def encode_end(self, text: str, prompt: str) -> Tokens:
        """The tokens of a text, truncated at its start: `<s>`, the prompt, the end, `</s>`.

        A tokenizer splits at white space first. Only the end of a long text is therefore tokenised
        where that is enough.
        """
        limit = END_CHARACTERS_PER_TOKEN * self.max_tokens
        if len(text) > limit:
            space = WHITE_SPACE.search(text, len(text) - limit)
            if space is not None:
                start = space.end()
                [tokens] = self.encode([text[start:]], [prompt], truncate=False)
                if len(tokens.ids) > self.max_tokens:
                    tokens.offsets[tokens.num_prompt :] += np.int32(start)
                    return keep_end(tokens, self.max_tokens)
        [tokens] = self.encode([text], [prompt], truncate=False)
        return keep_end(tokens, self.max_tokens)

    def _encode_pieces(self, pieces: list[str]) -> list[tokenizers.Encoding]:
        if len(pieces) == 1 and len(pieces[0]) <= SHORT_CHARACTERS:
            return [self.core.encode(pieces[0])]
        # The library has one pool of threads for the whole process, and no option for its size.
        step = self.num_threads or len(pieces)
        groups = (pieces[first : first + step] for first in range(0, len(pieces), step))
        return [encoding for group in groups for encoding in self.core.encode_batch(group)]

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


class _PartialText:
    """A text of which some pieces are tokenised."""

    def __init__(self, number: int, whole: str, num_prompt_characters: int) -> None:
        """`whole` is the prompt and the text."""
        self.number = number
        self._whole = whole
        self._num_prompt_characters = num_prompt_characters
        self._start = self._end = 0
        self._ids: list[Int32[np.ndarray, " _"]] = []
        self._offsets: list[Int32[np.ndarray, "_ 2"]] = []
        self._positions: Int32[np.ndarray, " _"] | None = None
        self._num_tokens = 0

    def next_piece(self, cuts: str) -> str:
        """The next piece, which must then be added."""
        self._end = _find_piece_end(self._whole, self._start, cuts)
        piece = self._whole[self._start : self._end]
        self._positions = find_pair_positions(piece)
        return replace_surrogates(piece)

    def add(self, encoding: tokenizers.Encoding) -> None:
        """Keep the tokens of the piece."""
        ids = np.array(encoding.ids, np.int32)
        offsets = np.array(encoding.offsets, np.int32)
        if self._positions is not None:
            offsets = self._positions[offsets]
        if self._ids:
            # `</s>` of the pieces before, and `<s>` of this one.
            self._ids[-1] = self._ids[-1][:-1]
            self._offsets[-1] = self._offsets[-1][:-1]
            ids, offsets = ids[1:], offsets[1:] + np.int32(self._start)
        self._ids.append(ids)
        self._offsets.append(offsets)
        self._num_tokens += len(encoding) - 2
        self._start = self._end

    def is_finished(self, max_tokens: int | None) -> bool:
        """Whether the text is tokenised to its end, or to that of the longest text."""
        if max_tokens is not None and self._num_tokens + 2 > max_tokens:
            return True
        return bool(self._ids) and self._start == len(self._whole)

    def convert(self, max_tokens: int | None) -> Tokens:
        """The tokens of the pieces, truncated."""
        one = len(self._ids) == 1
        ids = self._ids[0] if one else np.concatenate(self._ids)
        offsets = self._offsets[0] if one else np.concatenate(self._offsets)
        return _convert(ids, offsets, self._num_prompt_characters, max_tokens)


def keep_end(tokens: Tokens, max_tokens: int) -> Tokens:
    """At most `max_tokens` tokens: those before the text, and as many of its end as fit."""
    num_dropped = len(tokens.ids) - max_tokens
    if num_dropped <= 0:
        return tokens
    # A prompt longer than the model's longest text leaves room for nothing else.
    num_prompt = min(tokens.num_prompt, max_tokens - 1)
    kept = np.r_[0:num_prompt, num_prompt + num_dropped : len(tokens.ids)]
    return Tokens(tokens.ids[kept], tokens.offsets[kept], num_prompt, truncated=True)


def _find_piece_end(text: str, start: int, cuts: str) -> int:
    """The end of a piece, which does not separate the halves of a surrogate pair."""
    end = find_piece_end(text, start, cuts)
    return end - 1 if end - 1 > start and is_inside_pair(text, end) else end


def _convert(
    ids: Int32[np.ndarray, " _"],
    offsets: Int32[np.ndarray, "_ 2"],
    prompt: int,
    max_tokens: int | None,
) -> Tokens:
    """The tokens of a prompt and a text, truncated, with offsets that do not count the prompt."""
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
