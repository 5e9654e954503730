from __future__ import annotations

from capfilt.config import CaptionConfig
from capfilt.models.med import CaptionModel
from tests.models.conftest import make_images
from tests.models.decoding import ours


def test_captions_and_beams_share_their_images_keys(model: CaptionModel) -> None:
    shapes = set()
    remember = model.text.layers[0].cross.key_value
    hook = remember.register_forward_hook(lambda _, __, y: shapes.add(tuple(y.shape)))
    ours(model, make_images(3), CaptionConfig(method="beam"))
    ours(model, make_images(3), CaptionConfig(per_image=4))
    hook.remove()
    assert shapes == {(3, 17, 128)}
