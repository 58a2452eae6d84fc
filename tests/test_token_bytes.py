"""The bytes of the tokens of a text add up to those of the text, in windows of any length."""

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from loopjax.data.tokenizers import ByteTokenizer, FileTokenizer, load
from loopjax.evals.token_bytes import TokenBytes
from tests.test_prompts import SHARED

TEXTS = [
    "größer als 5 °C, naïve café, 東京は大きい 😀😀, the end",
    " a space first,\n\n  two  spaces\tand a tab ",
    "x",
    "東京は大きい" * 20,
    "a turn ends <|end|> here",
]
SPECIAL = ["<unk>", "</s>", "<|end|>"]


def byte_level(prefix):
    tokenizer = tokenizers.ByteLevelBPETokenizer(add_prefix_space=prefix)
    options = {"special_tokens": SPECIAL, "show_progress": False}
    tokenizer.train_from_iterator(TEXTS[:3], 300, **options)
    return tokenizer


def byte_fallback():
    """As of Llama: a space in front, and bytes for the characters outside the vocabulary."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    pieces = SPECIAL + [f"<0x{i:02X}>" for i in range(256)]
    options = {"vocab_size": 290, "limit_alphabet": 25, "show_progress": False}
    trainer = trainers.BpeTrainer(special_tokens=pieces, **options)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def metaspace():
    tokenizer = byte_fallback()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    everything = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, everything)
    return tokenizer


@pytest.fixture(params=["bytes", "byte level", "with a space", "byte fallback", "metaspace"])
def codec(request, tmp_path):
    made = {
        "byte level": lambda: byte_level(False), "with a space": lambda: byte_level(True),
        "byte fallback": byte_fallback, "metaspace": metaspace,
    }  # fmt: skip
    if request.param == "bytes":
        return ByteTokenizer()
    made[request.param]().save(str(tmp_path / "tokenizer.json"))
    return FileTokenizer(tmp_path / "tokenizer.json")


def counted(codec, texts, T):
    """The bytes of a corpus of documents that is read in windows of T tokens."""
    ids = [codec.eos_id]
    for text in codec.encode_batch(texts):
        ids += [*text.tolist(), codec.eos_id]
    ids += [-1] * (-(len(ids) - 1) % T)
    inputs, targets = (np.reshape(part, (-1, T)) for part in (ids[:-1], ids[1:]))
    return TokenBytes(codec).count(inputs, targets)


@pytest.mark.parametrize("T", [1, 7, 31, 128])
def test_tokens_stand_for_exactly_the_bytes_of_the_text(codec, T):
    # A tokenizer that puts a space in front only where there is none keeps no trace of it.
    texts = [text.lstrip() for text in TEXTS]
    assert counted(codec, texts, T) == sum(len(text.encode()) for text in texts)


def test_characters_of_single_bytes_in_a_fallback_are_counted_once(tmp_path):
    byte_fallback().save(str(tmp_path / "tokenizer.json"))
    codec = FileTokenizer(tmp_path / "tokenizer.json")
    text = "бвг" * 100
    ids = codec.encode_batch([text])[0].tolist()
    assert len(ids) == 1 + 600  # the space in front, and a token for each byte
    assert counted(codec, [text], 31) == 600
    # What decoding window by window would count:
    windows = [codec.decode(ids[i : i + 31]) for i in range(0, len(ids), 31)]
    assert sum(len(window.encode()) for window in windows) > 1000


LLAMA = SHARED.parent / "models/stories260k"


@pytest.mark.skipif(not LLAMA.is_dir(), reason="the files are not on this machine")
def test_a_real_tokenizer_counts_the_bytes_of_the_text():
    assert counted(load(str(LLAMA)), TEXTS, 31) == sum(len(text.encode()) for text in TEXTS)
