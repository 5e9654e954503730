"""Texts as a language model learns to write them: after a prompt, up to its end.

A decoder gets `<s> prompt | text </s>` and learns what stands behind the bar. The encoder of an
encoder-decoder gets `prompt </s>`, and its decoder learns `text </s>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from capfilt.models.language import LanguageTokens


class LanguageTexts:
    """Texts to the tokens of a language model; see `capfilt.data.maker.Encoder`."""

    def __init__(self, tokenizer: Any, model: Any, prompt: str, where: str) -> None:
        """Take the tokens from a model's tokenizer and config.

        Args:
            tokenizer: Of the language model.
            model: The language model.
            prompt: What every text begins with; white space at its end goes.
            where: Names the model in errors.

        Raises:
            ModelError: Config and tokenizer leave open which token ends a text.
        """
        tokens = LanguageTokens(tokenizer, model, where)
        self.end = tokens.end
        self.decoder_start = tokens.decoder_start
        self.lead = tokens.prompt(prompt)  # of a decoder, or of an encoder
        self.close: list[int] = []  # what ends an encoder's text
        if self.decoder_start is not None and self.lead[-1] == tokenizer.eos_token_id:
            self.close = [self.lead.pop()]
        self._tokenizer = tokenizer
        self._prompt = prompt.rstrip()
        self._known = len(self._plain([self._prompt])[0]) if self._prompt else 0

    def encode(self, texts: Sequence[str], *, max_tokens: int) -> list[list[int]]:
        """The tokens of each text as they follow the prompt, and the end, behind a first token.

        Line breaks become blanks: one is what ends an OPT's text.

        Args:
            texts: Without the prompt.
            max_tokens: Of each, first and end included.
        """
        texts = [" ".join(text.split()) for text in texts]
        if self._prompt:
            texts = [f"{self._prompt} {text}" for text in texts]
        return [
            [self.end, *ids[self._known : self._known + max_tokens - 2], self.end]
            for ids in self._plain(texts)
        ]

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]
