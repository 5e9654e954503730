"""The token ids that objectives set themselves.

A batch's text has no first token: `[CLS]` makes it ITC's, `[ENC]` ITM's, `[DEC]` and a prompt LM's.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import BertTokenizer


@dataclass(frozen=True)
class Tokens:
    """Ids in a BLIP vocabulary, and how many it has."""

    cls: int
    enc: int
    dec: int
    size: int

    @classmethod
    def of(cls, tokenizer: BertTokenizer) -> Tokens:
        """Of BERT's tokenizer with `[DEC]` and `[ENC]` (`capfilt.models.convert.blip_tokenizer`)."""
        ids = tokenizer.convert_tokens_to_ids(["[CLS]", "[ENC]", "[DEC]"])
        return cls(*ids, size=len(tokenizer))
