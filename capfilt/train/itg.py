"""ITG: generating a text from what the queries saw of its image.

Shapes: N images, P tokens that are learned.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from capfilt.models.med import PackedTexts
from capfilt.models.qformer import QFormer
from capfilt.models.query_attention import Trace
from capfilt.models.text_transformer import LanguageHead
from capfilt.models.transfer import tensor_on
from capfilt.train.gather import mean_over_ranks


def itg_loss(
    model: QFormer,
    head: LanguageHead,
    trace: Trace,
    texts: Sequence[list[int]],
    decode: int,
    *,
    label_smoothing: float,
) -> Tensor:
    """Cross-entropy per token, this rank's share of the mean over all ranks' tokens.

    Source: BLIP-2, arXiv:2301.12597, section 3.1; its code, `Qformer.py`.

    Args:
        model: Reads the texts, each token the queries and those before it.
        head: Of the vocabulary; its output weights are the model's word embeddings.
        trace: What the queries left of N images.
        texts: One per image, each ending with `[SEP]`, which is learned, too.
        decode: `[DEC]`, which comes before a text.
        label_smoothing: Share of the target that is spread over the vocabulary.
    """
    device = model.queries.device
    # The last token predicts nothing, and no other one sees it.
    packed = PackedTexts.of([[[decode, *ids[:-1]]] for ids in texts], device)
    states = head(model.read_after(packed, trace))
    logits = F.linear(states, model.words.weight, head.bias).float()
    target = tensor_on([token for ids in texts for token in ids], device)
    loss = F.cross_entropy(logits, target, reduction="sum", label_smoothing=label_smoothing)
    return mean_over_ranks(loss, len(target))
