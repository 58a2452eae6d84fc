"""The state of every point of a sweep, from the files in its directory alone; nothing is written.

done      it has a result
running   a process trains it: one that holds its lock, or a job that Slurm calls running
failed    its last process ended with an error
halved    it was stopped by --halving
stopped   it has begun, and no process trains it
waiting   it has not begun
"""

import json
import pathlib
import textwrap

from loopjax import lock, paths
from loopjax.errors import UserError
from loopjax.progress import duration
from loopjax.sweep import directory as files
from loopjax.sweep.directory import Entry
from loopjax.sweep.logs import failure_in, how_ended, position
from loopjax.sweep.slurm_queue import ENDED, JOBS, listed_jobs
from loopjax.text_table import aligned

LONGEST_NOTE = 100  # characters of an error in the table; the JSON has all
STATES = ("done", "running", "failed", "halved", "stopped", "waiting")


def of_sweep(directory) -> dict:
    """ "directory", "counts" ({state: number}) and "points", a dict for each in the order of the sweep.

    A point has "name", "label", "state", "step", "steps", and as far as they apply "nll" (held-out),
    "wall_clock_s", "loss", "eta_s", "host", "pid", "exit_code", "reason", "waits_for", "job".

    Raises UserError if there is no sweep. If sweep.json is damaged, "damaged" names it and the points
    are the runs below the directory.
    """
    directory = paths.of(directory)
    file = directory / files.FILE
    if not file.exists():
        raise UserError(f"--status {directory} is not the directory of a sweep: {file} is missing")
    entries = files.entries(directory)
    damaged = entries is None
    jobs = _slurm_jobs(directory)
    points = [of_point(entry, jobs) for entry in (_runs_in(directory) if damaged else entries)]
    _explain_waiting(points)
    counts = {state: sum(p["state"] == state for p in points) for state in STATES}
    found = {"directory": str(directory), "counts": counts, "points": points}
    return found | ({"damaged": str(file)} if damaged else {})


def has_failed(workdir: pathlib.Path) -> bool:
    """Whether the last process of an unfinished point, which nothing trains now, failed."""
    how = files.ended(workdir).get("how")
    return how == files.FAILED or (how is None and failure_in(workdir / files.LOG) is not None)


def _runs_in(directory: pathlib.Path) -> list[Entry]:
    names = {
        file.parent.name for f in ("config.json", files.LOG) for file in directory.glob(f"*/{f}")
    }
    return [Entry(name=name, workdir=directory / name) for name in sorted(names)]


def of_point(entry: Entry, jobs: dict[str, tuple[str, str]]) -> dict:
    """The state of a point or of any run; see `of_sweep`. `jobs` are those that Slurm has."""
    workdir, steps = entry.workdir, _steps(entry)
    found = {"name": entry.name, "label": entry.label, "state": "waiting", "steps": steps}
    found |= position(workdir, steps)
    if entry.waits_for:
        found["waits_for"] = entry.waits_for
    job, job_state = jobs.get(entry.name, ("", ""))
    if job_state:
        found["job"] = job
    result = files.read_if_complete(workdir / "result.json")
    if isinstance(result, dict):
        return _without_eta(found) | {"state": "done"} | _outcome(result)
    trainer = lock.holder(workdir)
    if trainer is None and (lock.held(workdir / files.LOG) or job_state == "RUNNING"):
        trainer = {}
    if trainer is not None:
        who = {key: trainer[key] for key in ("host", "pid") if trainer.get(key)}
        return found | {"state": "running"} | who
    ended = files.ended(workdir)
    if ended.get("how") == files.HALVED:
        found["state"] = "halved"
        found |= {f"halving_{k}": ended.get(k) for k in ("step", "metric", "value", "rank", "of")}
    elif has_failed(workdir):
        reason = ended.get("reason") or failure_in(workdir / files.LOG)
        found |= {"state": "failed", "exit_code": ended.get("exit_code"), "reason": str(reason)}
    elif (workdir / "config.json").is_file() or (workdir / files.LOG).is_file():
        found["state"] = "stopped"
    return _without_eta(found)


def _without_eta(found: dict) -> dict:
    return {key: value for key, value in found.items() if key != "eta_s"}


def _steps(entry: Entry) -> int:
    config = files.read_if_complete(entry.workdir / "config.json")
    steps = config.get("steps") if isinstance(config, dict) else None
    return entry.steps or (steps if isinstance(steps, int) else 0)


def _outcome(result: dict) -> dict:
    """What a table shows of a result, as far as it is there."""
    heldout = result.get("heldout")
    nll = heldout.get("nll") if isinstance(heldout, dict) else None
    values = {"step": result.get("steps"), "nll": nll, "wall_clock_s": result.get("wall_clock_s")}
    return {key: value for key, value in values.items() if isinstance(value, int | float)}


def _explain_waiting(points: list[dict]) -> None:
    """Adds why a waiting point will not start, if what it branches from cannot be there."""
    states = {p["name"]: p["state"] for p in points}
    for found in points:
        base = found.get("waits_for", "").rpartition("@")[0] or found.get("waits_for")
        if found["state"] != "waiting" or states.get(base) not in ("failed", "halved"):
            continue
        how = "failed" if states[base] == "failed" else "was stopped by --halving"
        found["reason"] = f"waits for {found['waits_for']}, which {how}"


def _slurm_jobs(directory: pathlib.Path) -> dict[str, tuple[str, str]]:
    """{point: (job, its state)} of the jobs that are queued or running; {} without Slurm."""
    ids = files.read_if_complete(directory / "slurm" / JOBS)
    if not isinstance(ids, dict) or not ids:
        return {}
    try:
        listed = listed_jobs()
    except UserError:
        return {}
    states = {name: listed.get(str(job), ("COMPLETED", ""))[0] for name, job in ids.items()}
    return {name: (str(ids[name]), state) for name, state in states.items() if state not in ENDED}


def as_json(found: dict) -> str:
    """The state of a sweep as JSON."""
    return json.dumps(found, indent=2)


def as_text(found: dict) -> str:
    """The counts, and a table with a row for each point."""
    points = found["points"]
    counts = ", ".join(f"{n} {state}" for state, n in found["counts"].items() if n)
    head = f"{found['directory']}: {len(points)} points" + (f": {counts}" if counts else "")
    if "damaged" in found:
        head += f"\n{found['damaged']} is damaged: these are the runs that are there"
    if not points:
        return head
    titles = ("point", "state", "step", "loss", "held-out NLL", "time")
    cells = [titles, *(_cells(p) for p in points)]
    lines = aligned(cells, left=2)
    width = max(map(len, lines))
    notes = ["", *(_note(p) for p in points)]
    lines = [f"{line:<{width}}  {note}".rstrip() for line, note in zip(lines, notes, strict=True)]
    return "\n".join([head, "", *lines])


def _cells(found: dict) -> tuple[str, ...]:
    step = f"{found['step']}/{found['steps']}" if found["steps"] else str(found["step"])
    time = duration(found["wall_clock_s"]) if "wall_clock_s" in found else ""
    time = f"ETA {duration(found['eta_s'])}" if "eta_s" in found else time
    return (
        found["name"],
        found["state"],
        "" if found["state"] == "waiting" else step,
        f"{found['loss']:.4f}" if "loss" in found else "",
        f"{found['nll']:.4f}" if "nll" in found else "",
        time,
    )


def _note(found: dict) -> str:
    """What else there is to say about a point, at the end of its row."""
    state = found["state"]
    job = f"job {found['job']}" if "job" in found else ""
    if state == "running":
        pid = f"pid {found['pid']}" if "pid" in found else ""
        host = f"on {found['host']}" if "host" in found else ""
        return " ".join(filter(None, (pid, host, job))) or "starting"
    if state == "failed":
        code = found.get("exit_code")
        how = f"{how_ended(code)}: " if isinstance(code, int) else ""
        return textwrap.shorten(how + found["reason"], LONGEST_NOTE, placeholder=" ...")
    if state == "halved":
        value = found["halving_value"]
        value = f"{value:.4f}" if isinstance(value, float) else value
        return (
            f"{found['halving_metric']} {value} at step {found['halving_step']}: "
            f"{found['halving_rank']} of {found['halving_of']}"
        )
    if state == "waiting":
        waits = found.get("reason") or (
            f"waits for {found['waits_for']}" if "waits_for" in found else ""
        )
        return ", ".join(filter(None, (waits, f"queued as {job}" if job else "")))
    return ""
