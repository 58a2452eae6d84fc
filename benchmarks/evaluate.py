"""Scoring and decoding, compared with Hugging Face's model in PyTorch on the same weights and requests.

    pip install "lm-eval[hf]"
    python benchmarks/evaluate.py [--hf DIR] [--items 20]

Scores the requests of the 5-shot reasoning primitives with loopjax and with lm-evaluation-harness's own
Hugging Face model at each batch size of --hf_batch (the fastest counts), and decodes --new_tokens
tokens greedily for 1 and for 16 prompts of 64 tokens. Without --hf the model is random, of --size and
--depth, with a BPE of 4,096 tokens trained on the prompts.
"""

import logging
import os
import pathlib
import tempfile

import numpy as np
from common import alternate, config_of, emit, parser, ratio, spread

# Progress bars of the harness would distort the measurement.
os.environ["TQDM_DISABLE"] = "1"


def random_model(size: str, depth: str, folder: pathlib.Path) -> pathlib.Path:
    """A directory as Hugging Face has them: random weights, and a tokenizer."""
    import tokenizers
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from loopjax.evals import primitives

    cfg = config_of(size, depth).model
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=cfg.vocab_size, hidden_size=cfg.d_model, intermediate_size=cfg.d_ff,
            num_hidden_layers=int(depth), num_attention_heads=cfg.n_heads,
            num_key_value_heads=cfg.n_kv_heads, max_position_embeddings=2048, rms_norm_eps=1e-5,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        )
    ).save_pretrained(folder)  # fmt: skip
    bpe = tokenizers.ByteLevelBPETokenizer()
    docs = [doc["prompt"] for name in TASKS for doc in primitives.dataset(primitive=name)["test"]]
    bpe.train_from_iterator(docs, 4096, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}'
    )
    return folder


TASKS = ("copying_random", "copying_real", "var_assign_basic_0", "var_assign_math_0",
         "var_assign_code_0")  # fmt: skip


def requests_of(items: int) -> list:
    """Log-likelihood requests of the primitives."""
    from loopjax.evals import suite

    tasks = suite.load(TASKS)["tasks"]
    for task in tasks.values():
        task.build_all_requests(limit=items, rank=0, world_size=1)
    return [instance for task in tasks.values() for instance in task.instances]


class Theirs:
    """The harness's Hugging Face model."""

    def __init__(self, folder: pathlib.Path, dtype: str):
        import torch
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.torch = torch
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.lm = HFLM(
            pretrained=model.to(device), tokenizer=AutoTokenizer.from_pretrained(folder),
            backend="causal", device=device,
        )  # fmt: skip

    def score(self, requests, batch: int):
        self.lm.batch_size_per_gpu = batch
        return [logprob for logprob, _ in self.lm.loglikelihood(requests, disable_tqdm=True)]

    def decode(self, prompts: list[list[int]], n: int):
        width = max(map(len, prompts))
        tokens = np.zeros((len(prompts), width), np.int64)
        mask = np.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
        tokens, mask = (self.torch.tensor(x, device=self.lm.device) for x in (tokens, mask))
        with self.torch.inference_mode():
            made = self.lm.model.generate(
                tokens, attention_mask=mask, do_sample=False, min_new_tokens=n, max_new_tokens=n
            )
        return made[:, width:].tolist()


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--depth", default="12")
    arguments.add_argument("--hf", help="directory of a Llama-family model with its tokenizer")
    arguments.add_argument("--items", type=int, default=20, help="number of items per task")
    arguments.add_argument("--new_tokens", type=int, default=128)
    arguments.add_argument("--hf_batch", type=int, nargs="+", default=[8, 32])
    args = arguments.parse_args()
    from loopjax.evals.harness import LoopjaxLM
    from loopjax.interop.import_hf import import_hf
    from loopjax.lm import decode

    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        folder = pathlib.Path(args.hf) if args.hf else place / "hf"
        if not args.hf:
            random_model(args.size, args.depth, folder)
        import_hf(str(folder), place / "ours")
        ours = LoopjaxLM(place / "ours", max_length=2048)
        theirs = Theirs(folder, ours.lm.cfg.dtype)
    theirs.lm._max_length = 2048
    requests = requests_of(args.items)
    scored = {"loopjax": lambda: ours.loglikelihood(requests, disable_tqdm=True)}
    for batch in args.hf_batch:
        scored[f"hf {batch}"] = lambda batch=batch: theirs.score(requests, batch)
    apart = np.abs(
        np.array([logprob for logprob, _ in scored["loopjax"]()])
        - np.array(scored[f"hf {args.hf_batch[0]}"]())
    )
    seconds = alternate(scored, args.rounds)
    best = min(list(scored)[1:], key=lambda name: spread(seconds[name])["median"])
    figures = {
        "requests": len(requests),
        "largest_difference_of_logprobs": float(apart.max()),
        "requests_per_s": {
            name: spread(len(requests) / s for s in times) for name, times in seconds.items()
        },
        "scoring_ratio": ratio(seconds[best], seconds["loopjax"]),
        "decoding": {},
    }
    texts = sorted({instance.args[0] for instance in requests}, key=len)
    rng = np.random.default_rng(0)
    ours.lm.tokenizer.eos_id = -1  # both make all the tokens
    for batch in (1, 16):
        chosen = [theirs.lm.tok_encode(texts[i])[:64] for i in rng.choice(len(texts), batch)]
        decoded = {
            "loopjax": lambda p=chosen: decode.generate(ours.lm, p, args.new_tokens),
            "hf": lambda p=chosen: theirs.decode(p, args.new_tokens),
        }
        same = [m.tokens for m in decoded["loopjax"]()] == decoded["hf"]()
        seconds = alternate(decoded, args.rounds)
        n = batch * args.new_tokens
        figures["decoding"][batch] = {
            "tokens_per_s": {k: spread(n / s for s in times) for k, times in seconds.items()},
            "ratio": ratio(seconds["hf"], seconds["loopjax"]),
            "same_tokens": same,
        }
    figures["torch_version"] = theirs.torch.__version__
    emit("evaluate", args, model=ours.lm.describe()["model"], **figures)


if __name__ == "__main__":
    main()
