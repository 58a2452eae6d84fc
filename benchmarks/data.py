"""Throughput of reading batches, compared with the throughput of an update.

    python benchmarks/data.py --data_dir DIR --mixture '{"web": 0.7, "python": 0.3}'

Without --data_dir: the bytes of the standard library, as in `configs/tiny.py`.
"""

import json
import time

from common import Step, alternate, config_of, emit, parser, spread


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--depth", default="24")
    arguments.add_argument("--data_dir", default="")
    arguments.add_argument("--mixture", type=json.loads, default={"stdlib": 1.0})
    arguments.add_argument("--threads", type=int, default=4)
    args = arguments.parse_args()
    config = config_of(args.size, args.depth, remat=args.remat)
    config.update(data_dir=args.data_dir, mixture=args.mixture, data_threads=args.threads)
    step = Step(config)
    batches = step.run.stream.batches(step.run.rows, 0)
    next(batches)
    seconds = []
    for _ in range(args.rounds):
        begun = time.perf_counter()
        for _ in range(50):
            next(batches)
        seconds.append((time.perf_counter() - begun) / 50)
    used = alternate({"step": step}, args.rounds)["step"]
    tokens = step.run.tokens_per_step
    emit(
        "data",
        args,
        read_tokens_per_s=spread(tokens / s for s in seconds),
        used_tokens_per_s=spread(tokens / s for s in used),
        read_over_used=spread(u / r for u, r in zip(used, seconds, strict=True)),
    )


if __name__ == "__main__":
    main()
