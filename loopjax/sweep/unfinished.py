"""The runs without a result, and why they have none."""

from loopjax import paths
from loopjax.sweep import directory as files
from loopjax.sweep import status
from loopjax.sweep.directory import Entry


def listed(directory, rows: list[dict]) -> list[str]:
    """A line for each run without a result, and for each point of the sweep without a run."""
    directory = paths.of(directory)
    is_sweep = (directory / files.FILE).is_file()
    points = status.of_sweep(directory)["points"] if is_sweep else []
    known = {(directory / point["name"]).absolute(): point for point in points}
    lines = []
    for row in rows:
        place = paths.of(row["directory"]).absolute()
        point = known.pop(place, None)
        if not row["finished"]:
            point = point or status.of_point(Entry(name=row["name"], workdir=place), {})
            lines.append(
                f"{row['name']}: step {row['step']:,} of {row['steps']:,}; {reason(point)}"
            )
    return lines + [f"{point['name']}: {reason(point)}" for point in known.values()]


def reason(point: dict) -> str:
    """Why a point of `status` has no result: "failed: ...", "stopped", "being trained by ..."."""
    state = point["state"]
    if state == "done":  # its result is that of a shorter run
        return "stopped; its result is that of fewer steps"
    if state == "failed":
        return f"failed: {point['reason'].removeprefix('loopjax train: ')}"
    if state == "halved":
        return (
            f"stopped by --halving at step {point['halving_step']}: {point['halving_metric']} "
            f"{point['halving_value']}, {point['halving_rank']} of {point['halving_of']}"
        )
    if state == "running":
        who = f" by process {point['pid']}" if "pid" in point else ""
        return "being trained" + who + (f" on {point['host']}" if "host" in point else "")
    if state == "waiting":
        waits = f", waits for {point['waits_for']}" if "waits_for" in point else ""
        return point.get("reason") or f"not started{waits}"
    return state
