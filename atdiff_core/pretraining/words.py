"""A byte-pair vocabulary of one's own, in the form of CLIP's tokenizer."""

import json
from collections.abc import Iterable
from typing import Any

START, END, CLOSED = "<|startoftext|>", "<|endoftext|>", "</w>"
SMALLEST = 2 + 2 * 256
"""Tokens of a vocabulary without merges: the start, the end, and each byte within a word and at its end."""


def trained_tokenizer(captions: Iterable[str], *, vocabulary: int, tokens: int) -> Any:
    """A ``CLIPTokenizer`` whose merges were learned from captions; the same captions give the same one.

    Like CLIP's own it knows every byte at both places, so that no text is unknown to it.

    Args:
        vocabulary: Most tokens it may know.
        tokens: Places of a sentence, with the start and the end.

    Raises:
        ValueError: If the vocabulary has no room for the single bytes.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPTokenizer

    if vocabulary < SMALLEST:
        raise ValueError(f"a vocabulary must have room for {SMALLEST} tokens, got {vocabulary}")
    alphabet = sorted(ByteLevel.alphabet())
    rules = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[]).backend_tokenizer
    learning = Tokenizer(BPE(end_of_word_suffix=CLOSED, continuing_subword_prefix=""))
    learning.normalizer, learning.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    # Numbered beforehand: pairs that are equally frequent are merged in the order of these numbers.
    first = [START, END, *(letter + CLOSED for letter in alphabet)]
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=first,
        initial_alphabet=alphabet,
        end_of_word_suffix=CLOSED,
        continuing_subword_prefix="",
        show_progress=False,
    )
    learning.train_from_iterator(captions, trainer)
    learned = json.loads(learning.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    return CLIPTokenizer(vocab=learned["vocab"], merges=merges, model_max_length=tokens)
