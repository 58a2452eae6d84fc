"""Time and memory of `loopjax inspect` on a checkpoint that Orbax wrote, without loopjax.

    python benchmarks/inspect_checkpoint.py --model 135m --moments
    python benchmarks/inspect_checkpoint.py --model 1.7b --dtype bfloat16 --chunk 64000000

Random weights of SmolLM's shapes, layers stacked, written by PyTreeCheckpointer on one device: an array
is one chunk on disk, or chunks of at most --chunk bytes, as the shards of many devices are.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = {"135m": (30, 576, 1536, 9, 3, 49152), "1.7b": (24, 2048, 8192, 32, 32, 49152)}


def shapes(model: str, depth: int | None) -> dict:
    """Parameters of a Llama-like model with tied embeddings, layers on axis 0."""
    L, D, F, H, K, V = MODELS[model]
    L = depth or L
    A = D // H
    return {
        "embed": (V, D),
        "final_norm": (D,),
        "layers": {
            "query": (L, D, H * A), "key": (L, D, K * A), "value": (L, D, K * A), "out": (L, H * A, D),
            "gate": (L, D, F), "up": (L, D, F), "down": (L, F, D),
            "attention_norm": (L, D), "mlp_norm": (L, D),
        },
    }  # fmt: skip


def write(path: pathlib.Path, args) -> None:
    import jax
    import jax.numpy as jnp
    import orbax.checkpoint as ocp

    random = np.random.default_rng(0)

    def fill(shape):
        return jnp.asarray(random.random(shape, np.float32) - 0.5, args.dtype)

    def is_shape(x):
        return isinstance(x, tuple)

    params = jax.tree.map(fill, shapes(args.model, args.depth), is_leaf=is_shape)
    tree = {"params": params}
    if args.moments:
        moments = jax.tree.map(lambda x: x * x, params)
        tree["opt_state"] = [{"mu": params, "nu": moments}]
    how = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=args.chunk), tree)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, tree, ocp.args.PyTreeSave(tree, save_args=how))


def measure(path: pathlib.Path, *flags: str) -> dict:
    """Wall-clock and processor seconds, imports included, and the peak memory of a process of its own."""
    command = [sys.executable, "-m", "loopjax", "inspect", str(path), "--json", *flags]
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=-3); "
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print(used.ru_maxrss, used.ru_utime + used.ru_stime)"
    )
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=ROOT, check=True, capture_output=True, text=True
    )
    peak, cpu = done.stdout.split()
    return {
        "seconds": round(time.perf_counter() - begun, 1),
        "cpu_seconds": round(float(cpu), 1),
        "peak_GB": round(int(peak) * 1024 / 1e9, 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="135m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--depth", type=int, help="layers (default: those of the model)")
    parser.add_argument("--moments", action="store_true", help="AdamW's two moments too")
    parser.add_argument("--chunk", type=int, default=None, help="most bytes of a stored chunk")
    parser.add_argument("--keep", help="directory of the checkpoint (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(args.keep or temporary).absolute() / "checkpoint"
        if not path.exists():
            # In a process of its own: the peak of this one counts for none.
            child = [sys.executable, __file__, *sys.argv[1:], "--keep", str(path.parent)]
            if args.keep:
                return write(path, args)
            subprocess.run(child, check=True)
        stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        result = {
            "benchmark": "inspect_checkpoint",
            "arguments": {**vars(args), "keep": None},
            "stored_GB": round(stored / 1e9, 2),
            "inspect": measure(path),
            "layers": measure(path, "--layers"),
            "export": measure(path, "--grep", "embed", "--export", f"{temporary}/e.safetensors"),
        }
        print(json.dumps(result, indent=2))
    return None


if __name__ == "__main__":
    main()
