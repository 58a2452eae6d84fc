"""The help of commands that take a config: their flags, and every field of the config.

Fields, defaults and comments are read from the source of `config.default`, so that
loopjax/config.py stays the one place that describes them.
"""

import inspect
import io
import json
import re
import textwrap
import tokenize

from ml_collections import ConfigDict

from loopjax import config as config_lib

WIDTH = 100
# Values of flags in usage lines, by the name of the flag.
VALUES = {
    "config": "FILE[:VARIANT]",
    "workdir": "DIR",
    "checkpoint": "DIR[@STEP]",
    "pairs": "FILE.jsonl,...|PRIMITIVE:N,...",
    "coordinator": "HOST:PORT",
    "memory": "SIZE",
    "topology": "CHIP:SHAPE",
    "phase": "all|last|NUMBER",
    "programs": "NAME,...",
    "json": "FILE",
    "dump": "DIR",
    "compilation_cache": "DIR|off",
    "profile_steps": "FIRST:LAST",
}
CONFIG = (
    ("--config=FILE[:VARIANT]", "config file, with a variant after a colon: configs/tiny.py:lidas"),
    (
        "--config.KEY=VALUE",
        "value of one config field: --config.steps=500 --config.model.d_model=256 "
        '--config.mixture=\'{"web": 0.7, "math": 0.3}\'',
    ),
    ("--help-config", "list of all config fields with defaults, from loopjax/config.py"),
)


def command_help(command: str, text: str, values, required, file: bool) -> str:
    """The help of `loopjax COMMAND`.

    Args:
      text: description of the command.
      values: the `absl.flags.FlagValues` of the command.
      required: names of flags that must be given.
      file: whether the config comes from a file.
    """
    flags = [values[name] for name in values if not re.match(r"config(\.|$)|help", name)]
    # A required flag comes first, in the order of the usage line.
    flags.sort(key=lambda flag: (flag.name not in required, flag.name))
    rows = [(_written(flag), _described(flag, required)) for flag in flags]
    usage = [f"--{name}={VALUES[name]}" for name in required]
    config = CONFIG if file else CONFIG[1:]
    return "\n".join(
        [
            f"usage: loopjax {command} {' '.join(usage)} [--config.KEY=VALUE ...] [FLAGS]",
            "",
            inspect.cleandoc(text),
            "",
            "config:",
            *aligned(config),
            "",
            "flags:",
            *aligned([*rows, ("--help", "this text")]),
        ]
    )


def _written(flag) -> str:
    """A flag as it is typed."""
    kind = flag.flag_type()
    if kind == "bool":
        return f"--{flag.name}"
    if kind.startswith("string enum"):
        return f"--{flag.name}={'|'.join(flag.parser.enum_values)}"
    return f"--{flag.name}={VALUES.get(flag.name, {'int': 'N', 'float': 'X'}.get(kind, 'TEXT'))}"


def _described(flag, required) -> str:
    text = re.sub(r"^<.*?>: ", "", flag.help)  # absl repeats the values of an enum there
    if flag.name in required:
        return f"{text} (required)"
    return f"{text} (default {flag.default})" if flag.default not in (None, "", False) else text


def aligned(rows, width: int = 0) -> list[str]:
    """Lines of (name, text) in two columns; a name longer than `width` has a line of its own."""
    indent = "  "
    width = width or min(28, max(len(name) for name, _ in rows))
    margin = indent + " " * (width + 2)
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, WIDTH - len(margin), break_on_hyphens=False) or [""]
        if len(name) > width:
            lines.append(indent + name)
        else:
            lines.append(f"{indent}{name:<{width}}  {wrapped.pop(0)}".rstrip())
        lines += [margin + line for line in wrapped]
    return lines


def fields_help(config: ConfigDict | None = None) -> str:
    """Every config field with its value and comment, under the headings of config.default.

    Args:
      config: values to show; by default the defaults.
    """
    config = config_lib.default() if config is None else config
    sections = _sections()
    names = {name for _, fields in sections for name, _ in fields}
    lines = ["Config fields, written --config.KEY=VALUE, with their defaults:"]
    for heading, fields in sections:
        lines += ["", *textwrap.wrap(heading, WIDTH)]
        rows = [
            (f"{key} = {_value(value)}", comment)
            for name, comment in fields
            for key, value in _leaves(config, name, names)
        ]
        lines += aligned(rows, width=31) if rows else []
    return "\n".join(lines)


def _leaves(config: ConfigDict, name: str, names: set[str]):
    """(key, value) of a field; of a group with fields of its own, those without a statement."""
    value = config
    for part in name.split("."):
        value = value[part]
    if isinstance(value, ConfigDict) and any(other.startswith(f"{name}.") for other in names):
        for key, inner in value.items():
            if f"{name}.{key}" not in names:
                yield f"{name}.{key}", inner
    else:
        yield name, value


def _value(value) -> str:
    if isinstance(value, ConfigDict):
        return json.dumps(value.to_dict())
    return '""' if value == "" else str(value)


def _sections() -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, [(field, comment)]) of `config.default`, in the order of its source.

    A heading is a comment above fields, on lines of its own; a field's comment is at its end.
    """
    source = textwrap.dedent(inspect.getsource(config_lib.default))
    sections: list = [("", [])]
    statement, comment, heading = "", "", []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ")
            if statement:
                comment = text
            else:
                heading.append(text)
        elif token.type == tokenize.NEWLINE:
            match = re.match(r"config\.([\w.]+)=", statement)
            if match:
                if heading:
                    sections.append((" ".join(heading), []))
                sections[-1][1].append((match[1], comment))
                heading = []
            statement, comment = "", ""
        elif token.type not in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            statement += token.string
    return [(heading, fields) for heading, fields in sections if fields]
