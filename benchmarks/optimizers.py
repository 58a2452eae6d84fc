"""Muon and Lion against AdamW: held-out loss of small runs over seeds, and the cost of an update.

python benchmarks/optimizers.py [--steps 600] [--seeds 3] [--learning-rates 1 2]

Every run takes the config's learning rate times each of `--learning-rates` (Lion a fifth of it): one
that was chosen with AdamW, so this is a check that the others work at all, not a ranking.
"""

import importlib.util
import pathlib
import statistics
import sys
import tempfile

from common import Step, alternate, config_of, emit, parser, ratio, spread

from loopjax.train import train

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
TASKS = {"text": ("tiny", "standard"), "text, grown": ("tiny", "lidas"), "p-hop": ("p_hop", "4")}
RATE = {"adamw": 1.0, "muon": 1.0, "lion": 0.2}


def config_for(file: str, variant: str, args):
    spec = importlib.util.spec_from_file_location(file, CONFIGS / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(variant)
    config.update(steps=args.steps, warmup_steps=-1, eval_every=0, checkpoint_every=0)
    config.cooldown.steps = -1
    return config


def trained(task: str, optimizer: str, rate: float, seed: int, args) -> dict:
    """Held-out NLL and accuracy of one run."""
    config = config_for(*TASKS[task], args)
    config.seed, config.optimizer.name = seed, optimizer
    config.learning_rate *= rate * RATE[optimizer]
    with tempfile.TemporaryDirectory() as workdir:
        return train(config, workdir)["heldout"]


def mean_and_deviation(values) -> dict:
    return {"mean": statistics.fmean(values), "deviation": statistics.stdev(values)}


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=600, help="updates of each run")
    arguments.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    arguments.add_argument("--learning-rates", type=float, nargs="+", default=[1.0])
    arguments.add_argument("--optimizers", nargs="+", default=list(RATE), choices=list(RATE))
    args = arguments.parse_args()
    losses = {}
    for task in TASKS:
        for name in args.optimizers:
            for rate in args.learning_rates:
                print(task, name, rate, file=sys.stderr)
                runs = [trained(task, name, rate, seed, args) for seed in range(args.seeds)]
                losses.setdefault(task, {})[f"{name}, learning rate x{rate:g}"] = {
                    "nll": mean_and_deviation([r["nll"] for r in runs]),
                    "accuracy": mean_and_deviation([r["accuracy"] for r in runs]),
                }
    steps = {}
    for name in args.optimizers:
        config = config_of(args.size, "12", remat=args.remat)
        config.optimizer.name = name
        steps[name] = Step(config)
    seconds = alternate(steps, args.rounds)
    cost = {
        name: {"step_s": spread(times), "over_adamw": ratio(times, seconds[args.optimizers[0]])}
        for name, times in seconds.items()
    }
    emit("optimizers", args, heldout=losses, update=cost)


if __name__ == "__main__":
    main()
