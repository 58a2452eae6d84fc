"""An update, compared with Hugging Face's LlamaForCausalLM with AdamW in PyTorch.

    pip install torch transformers
    python benchmarks/torch_llama.py [--size laptop|360m|1.7b] [--depth 24]

Same shapes, tokens, clipping and compute type, SDPA attention; PyTorch runs eagerly and, with
--torch_compile, compiled.
"""

import resource
import sys

import jax
import numpy as np
from common import SIZES, Step, alternate, config_of, emit, parser, ratio, spread

from loopjax import flops
from loopjax.run import plan_run


class TorchStep:
    """The same update in PyTorch."""

    def __init__(self, size: str, depth: int, checkpointing: bool, compiled: bool, batch):
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        self.torch = torch
        D, F, H, K, V, _, T, dtype = SIZES[size]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.autocast = dtype == "bfloat16"
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=depth,
                num_attention_heads=H, num_key_value_heads=K, max_position_embeddings=T,
                rms_norm_eps=1e-5, tie_word_embeddings=True, attn_implementation="sdpa",
                use_cache=False,
            )
        ).to(self.device)  # fmt: skip
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        self.parameters = sum(p.numel() for p in model.parameters())
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=5e-4, betas=(0.9, 0.95), weight_decay=0.01, fused=True
        )
        self.weights = list(model.parameters())
        self.model = torch.compile(model) if compiled else model
        self.inputs, self.targets = (
            torch.tensor(np.asarray(batch[key]), dtype=torch.long, device=self.device)
            for key in ("inputs", "targets")
        )

    def __call__(self):
        torch = self.torch
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            logits = self.model(self.inputs).logits
            loss = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1), self.targets.flatten()
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.loss = loss.item()


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--depth", type=int, default=24)
    arguments.add_argument("--torch_compile", action="store_true")
    arguments.add_argument(
        "--only",
        choices=("loopjax", "torch"),
        help="the only one to run, to measure its peak memory",
    )
    args = arguments.parse_args()
    config = config_of(args.size, str(args.depth), remat=args.remat)
    run = plan_run(config)
    batch = next(run.stream.batches(np.arange(config.batch_size), 0))
    steps, figures = {}, {}
    if args.only != "torch":
        steps["loopjax"] = Step(config)
        figures["loopjax_bytes"] = steps["loopjax"].bytes()
    if args.only != "loopjax":
        torch_args = (args.size, args.depth, args.remat == "full", args.torch_compile)
        steps["torch"] = theirs = TorchStep(*torch_args, batch)
        if theirs.parameters != flops.count_params(run.cfg, args.depth):
            sys.exit("the two models have different parameter counts")
        figures["torch_version"] = theirs.torch.__version__
    seconds = alternate(steps, args.rounds)
    figures["step_s"] = {name: spread(times) for name, times in seconds.items()}
    if len(steps) == 2:
        figures["loopjax_to_torch"] = ratio(seconds["loopjax"], seconds["torch"])
    if "torch" in steps and theirs.device == "cuda":
        figures["torch_peak_bytes"] = theirs.torch.cuda.max_memory_allocated()
    stats = jax.devices()[0].memory_stats() or {}
    figures["loopjax_peak_bytes_in_use"] = stats.get("peak_bytes_in_use")
    figures["process_peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    emit("torch_llama", args, **figures)


if __name__ == "__main__":
    main()
