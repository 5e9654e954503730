"""A language model of transformers' that writes about images: its tokens, and its rows at work.

A decoder (OPT, Llama) reads the visual prompt and the text prompt, and goes on from there. An
encoder-decoder (FlanT5) reads both with its encoder, and its decoder starts from nothing. Either
way all rows of a batch have one length, so there is no padding and nothing to mask.

Shapes: N images, Q queries, W width, A active rows, V vocabulary, L tokens of the text prompt.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from capfilt.errors import ModelError
from capfilt.models.transfer import tensor_on


class LanguageTokens:
    """Prompts to token ids and ids to captions. Safe to call from several threads."""

    def __init__(self, tokenizer: Any, model: Any, where: str) -> None:
        """Read what the model's config says of its special tokens.

        Args:
            tokenizer: Of the checkpoint.
            model: The language model.
            where: Names the checkpoint in errors.

        Raises:
            ModelError: Config and tokenizer leave open which token ends a text.
        """
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._known = len(tokenizer)
        settings = model.generation_config
        self.end = self._end(settings.eos_token_id, where)
        self._start = settings.bos_token_id
        # Where the decoder starts; None where it goes on from the prompt itself.
        self.decoder_start: int | None = None
        if model.config.is_encoder_decoder:
            self.decoder_start = settings.decoder_start_token_id
            if self.decoder_start is None:
                self.decoder_start = settings.pad_token_id

    def prompt(self, text: str) -> list[int]:
        """As `prompt_tokens`, but at least one."""
        with self._lock:
            ids = prompt_tokens(self._tokenizer, text)
        return ids or [self.end if self._start is None else self._start]

    def decode(self, prompt: Sequence[int], caption: Sequence[int]) -> str:
        """The text of a caption's tokens, without its prompt's."""
        whole, lead = (self._decode(ids) for ids in ([*prompt, *caption], prompt))
        return whole.removeprefix(lead).strip()

    def _decode(self, ids: Sequence[int]) -> str:
        with self._lock:
            known = [i for i in ids if i < self._known]  # embeddings may be padded
            return self._tokenizer.decode(known, skip_special_tokens=True)  # type: ignore[no-any-return]

    def _end(self, ids: int | Sequence[int] | None, where: str) -> int:
        """The token that ends a text. Of several, the tokenizer's own, which training appends."""
        if isinstance(ids, int):
            return ids
        own = self._tokenizer.eos_token_id
        if own is None or (ids and own not in ids):
            raise ModelError(f"{where}: text_config.eos_token_id is {ids}: give the one in use")
        return int(own)


def prompt_tokens(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a prompt as a tokenizer gives them, special ones included.

    White space at the end goes: to these tokenizers it belongs to the next word.
    """
    return list(tokenizer(text.rstrip())["input_ids"])


class LanguageSession:
    """Rows of one batch under decoding; see `capfilt.models.rows.Rows`."""

    def __init__(
        self,
        model: Any,
        visual: Tensor,
        prompts: Sequence[Sequence[int]],
        decoder_start: int | None,
    ) -> None:
        """Run the prompts, once per image.

        Args:
            model: transformers' causal or sequence-to-sequence language model.
            visual: [N, Q, W].
            prompts: Token ids [N, L], or [1, L] for all images.
            decoder_start: First token of an encoder-decoder's decoder; None for a decoder.
        """
        self.logits: Tensor  # [A, V], of each row's next token
        self._cache: Any
        self._model = model
        self._ids = "input_ids" if decoder_start is None else "decoder_input_ids"
        device = visual.device
        ids = tensor_on([list(prompt) for prompt in prompts], device)
        words = model.get_input_embeddings()(ids).to(visual.dtype)
        states = torch.cat([visual, words.expand(len(visual), -1, -1)], dim=1)
        inputs: dict[str, Any]
        if decoder_start is None:
            inputs = {"inputs_embeds": states, "logits_to_keep": 1}
        else:
            start = tensor_on([[decoder_start]], device).expand(len(visual), -1)
            encoded = model.get_encoder()(inputs_embeds=states)
            inputs = {"encoder_outputs": encoded, self._ids: start}
        self._encoded = inputs.get("encoder_outputs")
        self._take(model(**inputs, use_cache=True))

    def advance(self, ids: Tensor) -> None:
        """Append one token [A] to every row."""
        extra = {} if self._encoded is None else {"encoder_outputs": self._encoded}
        self._take(
            self._model(
                **{self._ids: ids[:, None]}, **extra, past_key_values=self._cache, use_cache=True
            )
        )

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, ordered by image; a row may come more than once."""
        if list(rows) != list(range(len(self.logits))):
            self.reorder(tensor_on(list(rows), self.logits.device))

    def reorder(self, rows: Tensor) -> None:
        """Put rows [A] in another order; a row may come more than once."""
        self._cache.reorder_cache(rows)
        self.logits = self.logits[rows]
        if self._encoded is not None:  # its keys and values are in the cache, its length counts
            self._encoded = type(self._encoded)(self._encoded[0][rows])

    def _take(self, output: Any) -> None:
        self.logits = output.logits[:, -1].float()
        self._cache = output.past_key_values
