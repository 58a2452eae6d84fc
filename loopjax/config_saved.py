"""Configs that were saved with a run: read again, and compared with the config of now."""

from ml_collections import ConfigDict

from loopjax import config as config_lib


def contradictions(saved: dict, current: dict, *, branch: bool = False) -> list[str]:
    """The fields in which two configs (nested dicts) describe different runs, with both values.

    Fields that a resumed run may change are not compared, nor those that determine the phases, nor,
    with `branch`, those that determine the initialization.
    """
    # A field that the saved config lacks had its default value.
    saved = config_lib.flatten(config_lib.default().to_dict()) | config_lib.flatten(upgraded(saved))
    current = config_lib.flatten(current)
    free = (
        *config_lib.RUNTIME_FIELDS,
        *config_lib.FUTURE_FIELDS,
        *(config_lib.INIT_FIELDS if branch else ()),
    )
    names = [n for n in {**saved, **current} if not any(f"{n}.".startswith(f"{f}.") for f in free)]
    return [
        f"config.{n}={current.get(n)} (the run has {saved.get(n)})"
        for n in names
        if saved.get(n) != current.get(n)
    ]


def upgraded(saved: dict) -> dict:
    """A saved config (nested dicts) in which fields of earlier versions have their current names."""
    out = {key: dict(value) if isinstance(value, dict) else value for key, value in saved.items()}
    for old, new in config_lib.MOVED.items():
        above, _, name = old.rpartition(".")
        holder = out.get(above, {}) if above else out
        if name in holder:
            group, _, current = new.partition(".")
            value = holder.pop(name)
            out[group] = {**out.get(group, {}), current: value}
    return out


def from_saved(saved: dict) -> ConfigDict:
    """The config of a saved run; fields that it lacks have their defaults."""

    def filled(known: dict, given: dict) -> dict:
        out = dict(given)
        for key, value in known.items():
            if key not in given:
                out[key] = value
            elif isinstance(value, dict) and key not in by_source:
                out[key] = filled(value, given[key])
        return out

    by_source = {name.rpartition(".")[2] for name in config_lib.BY_SOURCE}
    return ConfigDict(filled(config_lib.default().to_dict(), upgraded(saved)))
