"""What kind of result a file holds, named in the file: {"schema": "loopjax.eval", "schema_version": 1}.

Files are recognized by these two entries, whatever they are called. Files of the first release have
neither; `_without_schema` recognizes those, and nothing else needs to know about them.
"""

import pathlib

# The version of each schema that this code writes; older ones are read too.
VERSIONS = {
    "loopjax.diagnostic": 1,
    "loopjax.eval": 1,
    "loopjax.icl": 1,
    "loopjax.intervene": 1,
    "loopjax.lens": 1,
    "loopjax.nll": 1,
    "loopjax.partial": 1,
}


class Unreadable(ValueError):
    """A file without a readable result; the message is a clause about the file ("it is not JSON")."""


def header(name: str) -> dict:
    """The entries that a new file begins with, for `name` of VERSIONS without "loopjax."."""
    schema = f"loopjax.{name}"
    return {"schema": schema, "schema_version": VERSIONS[schema]}


def with_header(name: str, content: dict) -> dict:
    """The content of a file behind its header; the content may come from a file without one."""
    return header(name) | {key: value for key, value in content.items() if key != "format"}


def without_header(content: dict) -> dict:
    return {key: value for key, value in content.items() if key not in ("schema", "schema_version")}


def identify(path: pathlib.Path, content) -> dict:
    """{"schema": ..., "diagnostic": ... of a diagnostic} of a file's content.

    Raises Unreadable if it is not a result, or one of a newer version than this code reads.
    """
    if not isinstance(content, dict):
        raise Unreadable("it is not a result of loopjax")
    if "schema" not in content:
        content = _without_schema(path, content)
    schema, version = content["schema"], content.get("schema_version")
    if schema not in VERSIONS:
        raise Unreadable(f"its schema {schema!r} is not one of {', '.join(VERSIONS)}")
    if not isinstance(version, int) or version > VERSIONS[schema]:
        raise Unreadable(
            f"it has version {version} of the schema {schema}, this loopjax reads "
            f"version {VERSIONS[schema]}"
        )
    return {key: content[key] for key in ("schema", "diagnostic") if key in content}


# The diagnostics of the first release, whose files named them only in the file's name.
_FIRST_DIAGNOSTICS = (
    "norms", "future_local", "future", "current_attention", "depth_score", "similarity", "overlap",
    "exit_accuracy",
)  # fmt: skip


def _without_schema(path: pathlib.Path, content: dict) -> dict:
    """The header that a file of the first release would have; by its keys, a diagnostic by its name."""
    if "kind" in content:
        stem = path.stem
        names = [n for n in _FIRST_DIAGNOSTICS if stem == n or stem.startswith(f"{n}-")]
        if not names:
            raise Unreadable(
                "it has no schema, and its name does not start with a diagnostic "
                f"({', '.join(_FIRST_DIAGNOSTICS)})"
            )
        return {"schema": "loopjax.diagnostic", "diagnostic": names[0],
                "schema_version": content.get("format")}  # fmt: skip
    by_key = {"plans": "eval", "curves": "icl", "unmodified": "intervene", "rows": "nll",
              "losses": "lens"}  # fmt: skip
    for key, name in by_key.items():
        if key in content:
            return {"schema": f"loopjax.{name}", "schema_version": content.get("format", 1)}
    raise Unreadable("it is not a result of loopjax")
