"""The vocabulary of the tiny pipeline: every word of the world is one token, other words fall apart into letters."""

import json
from pathlib import Path

from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import CLIPTokenizer

from ..world import OBJECTS, PLACES, STYLES, prompt

CONTEXT = 16  # tokens a prompt may have, its start and end included
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"

#: Words without a meaning, one token each: names for a subject that the model is yet to learn.
RARE_WORDS = ("sks", "zwx", "ohwx", "qvb", "xjy", "vkz", "mqp", "jfx", "bzk", "wqt", "kzv", "pxq")


def wordings() -> list[str]:
    """A prompt for every object, style and place, and the rare words."""
    objects = [prompt(noun) for noun in OBJECTS]
    styles = [prompt(OBJECTS[0], style=style) for style in STYLES]
    places = [prompt(OBJECTS[0], place=place) for place in PLACES]
    return [*objects, *styles, *places, *RARE_WORDS]


def tokenizer() -> CLIPTokenizer:
    """Byte-pair merges learned on the words of the world, numbered as CLIP's: letters, merges, start, end.

    >>> tokenizer().tokenize("a cat in papercut art style by sks")
    ['a</w>', 'cat</w>', 'in</w>', 'papercut</w>', 'art</w>', 'style</w>', 'b', 'y</w>', 'sks</w>']
    """
    learner = CLIPTokenizer().backend_tokenizer
    learner.model = BPE(end_of_word_suffix=WORD_END)
    learner.train_from_iterator(wordings(), BpeTrainer(end_of_word_suffix=WORD_END, show_progress=False))
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + WORD_END for letter in letters), *map("".join, merges), START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocabulary, merges, model_max_length=CONTEXT)


def save(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the tokenizer's files, those of older versions of transformers included."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def token_ids(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """int64 ``(len(prompts), CONTEXT)``, filled up with the end token as in Stable Diffusion."""
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return tokenizer(prompts, max_length=CONTEXT, **options).input_ids
