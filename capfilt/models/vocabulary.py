"""The tokens of a BLIP checkpoint: BERT's WordPiece plus `[DEC]` and `[ENC]`.

`[DEC]` starts a caption and `[SEP]` ends it; their ids stand in the checkpoint's config. Published
folders do not always list the two added tokens in their tokenizer, so `[ENC]`, when unknown there,
is the last row of the embedding, as in BLIP's code.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from transformers import BertTokenizer

from capfilt.errors import ModelError

FILES = (
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


class Vocabulary:
    """Texts to token ids and back. Safe to call from several threads."""

    def __init__(self, tokenizer: BertTokenizer, *, start: int, end: int, size: int) -> None:
        self._tokenizer = tokenizer
        # A tokenizer keeps truncation as a setting of its own, and raises "Already borrowed" when
        # one thread changes it while another encodes. A batch takes about a millisecond.
        self._lock = threading.Lock()
        self.start = start  # [DEC]
        self.end = end  # [SEP]
        self.first_to_match = tokenizer.get_vocab().get("[ENC]", size - 1)

    @classmethod
    def load(
        cls, folder: Path, *, start: int | None = None, end: int | None = None, size: int
    ) -> Vocabulary:
        """Read a checkpoint's tokenizer.

        Args:
            folder: Of the checkpoint.
            start: Id of `[DEC]`, from its config; None where no caption is to start.
            end: Id of `[SEP]`, from its config; None takes the tokenizer's.
            size: Rows of the word embedding.

        Raises:
            ModelError: The folder has no tokenizer, or one that this embedding cannot serve.
        """
        if not any((folder / name).is_file() for name in FILES[:2]):
            raise ModelError(
                f"{folder}: has neither tokenizer.json nor vocab.txt: save the checkpoint's "
                "processor or tokenizer into the folder"
            )
        tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
        highest = max(tokenizer.get_vocab().values(), default=-1)
        start, end = start or 0, tokenizer.sep_token_id if end is None else end
        if highest >= size or max(start, end) >= size:
            raise ModelError(
                f"{folder}: tokens go up to {max(highest, start, end)} but the embedding has "
                f"{size} rows: tokenizer and config.json are of different checkpoints"
            )
        if tokenizer.sep_token_id != end:
            raise ModelError(
                f"{folder}: [SEP] is {tokenizer.sep_token_id} in the tokenizer but "
                f"text_config.sep_token_id is {end}: they are of different checkpoints"
            )
        return cls(tokenizer, start=start, end=end, size=size)

    def prompt(self, text: str) -> list[int]:
        """What a caption starts from: `[DEC]` and the prompt's tokens."""
        with self._lock:
            return [self.start, *self._tokenizer(text, add_special_tokens=False)["input_ids"]]

    def encode(self, texts: Sequence[str], *, max_tokens: int) -> list[list[int]]:
        """`[CLS]`, tokens, `[SEP]` of each text, cut to `max_tokens` in all."""
        if not texts:
            return []
        with self._lock:
            encoded = self._tokenizer(list(texts), truncation=True, max_length=max_tokens)
        return encoded["input_ids"]  # type: ignore[no-any-return]

    def decode(self, prompt: Sequence[int], caption: Sequence[int]) -> str:
        """The text of a caption's tokens, without its prompt's.

        The prompt takes part in decoding, since a caption may go on in the middle of its last word.
        """
        whole, lead = (self._decode(ids) for ids in ([*prompt, *caption], prompt))
        return whole.removeprefix(lead).strip()

    def _decode(self, ids: Sequence[int]) -> str:
        with self._lock:
            known = [i for i in ids if i != self.start and i < len(self._tokenizer)]
            return self._tokenizer.decode(known, skip_special_tokens=True)  # type: ignore[no-any-return]
