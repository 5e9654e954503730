"""The token ids that objectives set themselves.

A batch's text has no first token: `[CLS]` makes it ITC's, `[ENC]` ITM's, `[DEC]` and a prompt LM's.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import BertTokenizer


@dataclass(frozen=True)
class Tokens:
    """Ids in a BLIP vocabulary, and how many it has."""

    classify: int  # [CLS]
    match: int  # [ENC]
    decode: int  # [DEC]
    size: int
    prompt: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: BertTokenizer, prompt: str = "") -> Tokens:
        """From BERT's tokenizer with `[DEC]` and `[ENC]` (`convert.blip_tokenizer`)."""
        classify, match, decode = tokenizer.convert_tokens_to_ids(["[CLS]", "[ENC]", "[DEC]"])
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return cls(classify, match, decode, len(tokenizer), tuple(ids))

    @classmethod
    def of_bert(cls, tokenizer: BertTokenizer) -> Tokens:
        """From BERT's tokenizer with `[DEC]`: BLIP-2 matches a text with `[CLS]` first."""
        classify, decode = tokenizer.convert_tokens_to_ids(["[CLS]", "[DEC]"])
        return cls(classify, classify, decode, len(tokenizer))
