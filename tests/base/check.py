"""Runs every command of loopjax in an environment with the base dependencies alone.

    make test-base

Commands that need no extra run on tiny models; those that do must name the extra in one sentence.
Needs no pytest. Prints each command with its outcome, and exits with code 1 if any differs.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from loopjax.cli.main import COMMANDS

ROOT = pathlib.Path(__file__).resolve().parents[2]
OPTIONAL = (
    "datasets", "huggingface_hub", "lm_eval", "matplotlib", "pyarrow", "safetensors", "submitit",
    "tokenizers", "tqdm",
)  # fmt: skip
CONFIG = '''\
"""A sweep of two runs that take seconds."""

from loopjax import config as config_lib


def get_config(variant="4x1"):
    config = config_lib.default()
    config.steps = 12
    config.batch_size = 8
    config.seq_len = 64
    config.depth = variant
    config.cooldown.steps = 4
    config.warmup_steps = 2
    config.data_dir = "data"
    config.mixture = {"web": 1.0}
    config.checkpoint_every = 6
    config.eval_batches = 2
    config.model.update(
        vocab_size=264, d_model=32, d_ff=64, n_heads=2, n_kv_heads=2, dtype="float32"
    )
    return config


def sweep(add):
    for depth in ("2", "1x2"):
        add(arg=depth)
'''
# The parameters of a run, as those of a foreign checkpoint.
OWN_MAP = {
    "embed": "V D", "layers/attention_norm": "D", "layers/query": "D H*C", "layers/key": "D K*C",
    "layers/value": "D K*C", "layers/output": "H*C D", "layers/mlp_norm": "D", "layers/gate": "D F",
    "layers/up": "D F", "layers/down": "F D", "final_norm": "D",
}  # fmt: skip
FACTS = """\
prefix = "params/"
ignore = ["optimizer/.*"]
[model]
norm = "rms"
positions = "rope"
activation = "silu"
rope_theta = 10_000.0
norm_eps = 1e-5
seq_len = 64
n_heads = 2
"""
# A command line, and what its outcome must be: text of its output, or the extra that it names.
RUNS = [
    ("flops --config=tiny.py", "parameters"),
    ("plan --config=tiny.py --devices=8 --memory=80GB", "memory"),
    ("prepare --input in.jsonl --output data/web --heldout 0.1", "train:"),
    ("prepare --input in.txt --output data/text --heldout 0.1", "train:"),
    ("data data --samples 1 --verify", "web"),
    ("train --config=tiny.py --workdir=runs/a", "done"),
    ("finetune --checkpoint=runs/a --pairs=pairs.jsonl:32 --workdir=runs/f --config.steps=10"
     " --config.eval_every=5 --config.eval_batches=1", "done"),
    ("sweep --config=tiny.py --workdir=sweep --jobs=2", "done"),
    ("results sweep", "training"),
    ("inspect runs/a --layers", "layers"),
    ("nll --checkpoint runs/a --depth 4,4x2 --output nll.json", "bits/byte"),
    ("generate --checkpoint runs/a --prompt line --max-new-tokens 8", "8 tokens"),
    ("analyze --checkpoint runs/a --n 4 --output signature", "norms-arithmetic"),
    ("nll --checkpoint runs/a --depth 1-2x3:damped-1", "1-2x3:damped-1"),
    ("analyze --checkpoint runs/a --depth 4x2 --what trajectories --n 2 --output loops",
     "trajectories-arithmetic"),
    ("export-hf runs/a exported", "LlamaForCausalLM"),
    ("import-orbax runs/a imported --map own.toml", "4 layers"),
]  # fmt: skip
EXTRAS = [
    ("eval --checkpoint runs/a --tasks hellaswag --output e.json", "eval"),
    ("icl --checkpoint runs/a --output i.json", "eval"),
    ("intervene --checkpoint runs/a --op swap --output v.json", "eval"),
    ("analyze --checkpoint runs/a --what exit_accuracy --output x", "eval"),
    ("report report.html runs/a", "report"),
    ("inspect runs/a --plot layers.png", "report"),
    ("sweep --config=tiny.py --workdir=other --launcher=slurm", "sweep"),
    ("prepare --dataset some/text --output new", "data"),
    ("prepare --input in.jsonl --tokenizer tokenizer.json --output new", "data"),
    ("prepare --input in.parquet --output new", "data"),
    ("import-hf model new", "hf"),
    ("compile --config=tiny.py --topology=v5e:2x2", "aot"),
    ("compile --config=tiny.py --topology=h100:1x8", "gpu"),
]


def write_inputs(place: pathlib.Path) -> None:
    texts = [f"line {i} of a text that is short. " * 20 for i in range(200)]
    (place / "in.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (place / "in.txt").write_text("\n".join(texts))
    pairs = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(64)]
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (place / "tiny.py").write_text(CONFIG)
    rules = [
        f"[[rules]]\npath = '{leaf}'\nto = '{leaf}'\naxes = '{axes}'\n"
        for leaf, axes in OWN_MAP.items()
    ]
    (place / "own.toml").write_text(FACTS + "".join(rules))
    (place / "tokenizer.json").write_text("{}")
    (place / "in.parquet").write_bytes(b"PAR1")
    (place / "model").mkdir()
    (place / "model" / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "vocab_size": 264,
                "max_position_embeddings": 64,
                "rms_norm_eps": 1e-5,
                "hidden_act": "silu",
            }
        )
    )
    (place / "model" / "model.safetensors").write_bytes(b"")


class Check:
    """Runs command lines in a directory, prints the outcomes, and counts the failures."""

    def __init__(self, place: pathlib.Path):
        self.place = place
        self.failures = 0

    def __call__(self, line: str, code: int, sound) -> None:
        """Runs `loopjax LINE`, which must exit with `code` and pass the predicate `sound`."""
        start = time.monotonic()
        done = subprocess.run(
            [pathlib.Path(sys.executable).parent / "loopjax", *line.split()],
            cwd=self.place,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        ok = done.returncode == code and "Traceback" not in done.stderr and sound(done)
        outcome = "ok" if ok else "FAILED"
        last = (done.stderr.strip().splitlines() or [""])[-1]
        self.failures += not ok
        print(f"{outcome:<7}{time.monotonic() - start:5.1f} s  loopjax {line}", flush=True)
        if not ok:
            print(f"exit code {done.returncode}\n{done.stdout}{done.stderr}", flush=True)
        elif code:
            print(f"{'':16}{last}", flush=True)


def one_sentence(extra: str):
    def sound(done) -> bool:
        return done.stderr.count("\n") == 1 and f"pip install 'loopjax[{extra}]'" in done.stderr

    return sound


def main() -> int:
    present = [name for name in OPTIONAL if importlib.util.find_spec(name)]
    if present:
        print(f"not an environment with the base dependencies alone: it has {', '.join(present)}")
        return 1
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        write_inputs(place)
        check = Check(place)
        check("--help", 0, lambda done: all(name in done.stdout for name in COMMANDS))
        for name in COMMANDS:
            check(f"{name} --help", 0, lambda done, n=name: f"usage: loopjax {n}" in done.stdout)
        for line, text in RUNS:
            check(line, 0, lambda done, text=text: text in done.stdout + done.stderr)
        for line, extra in EXTRAS:
            check(line, 2, one_sentence(extra))
        n_commands = 1 + len(COMMANDS) + len(RUNS) + len(EXTRAS)
    minutes = (time.monotonic() - start) / 60
    print(f"{n_commands - check.failures} of {n_commands} commands as expected, {minutes:.1f} min")
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
