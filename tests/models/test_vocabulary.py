from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from capfilt.models.vocabulary import Vocabulary
from tests import checkpoints


@pytest.fixture
def vocabulary() -> Vocabulary:
    tokenizer = checkpoints.tokenizer()
    start, end = tokenizer.bos_token_id, tokenizer.sep_token_id
    return Vocabulary(tokenizer, start=start, end=end, size=len(tokenizer))


def ids(*tokens: str) -> list[int]:
    found: list[int] = checkpoints.tokenizer().convert_tokens_to_ids(list(tokens))
    return found


def test_prompt_starts_with_dec_and_has_no_end(vocabulary: Vocabulary) -> None:
    assert vocabulary.prompt("a picture of ") == ids("[DEC]", "a", "picture", "of")


def test_encode_cuts_the_text_and_keeps_its_end(vocabulary: Vocabulary) -> None:
    encoded = vocabulary.encode(["a dog in snow", "dog"], max_tokens=4)
    assert encoded == [ids("[CLS]", "a", "dog", "[SEP]"), ids("[CLS]", "dog", "[SEP]")]
    assert vocabulary.encode([], max_tokens=4) == []


def test_decode_leaves_out_the_prompt_alone(vocabulary: Vocabulary) -> None:
    prompt = vocabulary.prompt("a picture of ")
    caption = ids("a", "picture", "of", "a", "dog")
    assert vocabulary.decode(prompt, caption) == "a picture of a dog"
    assert vocabulary.decode(prompt, []) == ""


def test_decode_of_a_caption_that_goes_on_in_the_prompts_last_word(vocabulary: Vocabulary) -> None:
    prompt = vocabulary.prompt("a picture of ")
    assert vocabulary.decode(prompt, ids("##s", "dog")) == "s dog"


def test_decode_skips_added_tokens_that_the_tokenizer_may_not_know(vocabulary: Vocabulary) -> None:
    prompt = vocabulary.prompt("a")
    odd = [*ids("dog", "[DEC]", "[ENC]", "[MASK]", "tree"), len(checkpoints.tokenizer()) + 1]
    assert vocabulary.decode(prompt, odd) == "dog tree"


def test_four_threads_at_once_get_what_one_gets(vocabulary: Vocabulary) -> None:
    # Each thread asks for another truncation, which is what the tokenizer shares.
    texts = ["a dog in the snow on the street "] * 40
    prompt, caption = vocabulary.prompt("a picture of "), ids("a", "dog")
    expected = {n: vocabulary.encode(texts, max_tokens=n) for n in range(4, 8)}

    def work(length: int) -> None:
        for _ in range(200):
            assert vocabulary.encode(texts, max_tokens=length) == expected[length]
            assert vocabulary.prompt("a picture of ") == prompt
            assert vocabulary.decode(prompt, caption) == "a dog"

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, expected))
