"""Command lines with a config: --config=FILE[:VARIANT] [--config.KEY=VALUE ...] and flags.

The fields, and what they mean, are in loopjax/config.py.
"""

import difflib
import pathlib
import re
import sys
import traceback

from absl import flags
from ml_collections import ConfigDict, config_flags

from loopjax import config as config_lib
from loopjax.config_help import VALUES, command_help, fields_help
from loopjax.errors import UserError, first_line

HELP = {"-h", "--help", "--helpfull", "--help-config", "--help_config"}


def parse(
    command: str, text: str, argv: list[str], define=lambda values: None, required=(), make=None
):
    """(config, flags) of a command line; raises UserError in one sentence.

    Args:
      command: name of the command.
      text: description of the command in its help.
      define: function that defines the flags of the command on an `absl.flags.FlagValues`.
      required: names of flags that must be given, besides --config.
      make: function of the flags that returns the config to override, for a command without a
        config file.
    """
    values = flags.FlagValues()
    define(values)
    required = required if make else ("config", *required)
    asked = HELP.intersection(argv)
    if asked:
        fields = any("config" in flag for flag in asked)
        file = make is None
        print(fields_help() if fields else command_help(command, text, values, required, file))
        raise SystemExit(0)
    argv = [f"loopjax {command}", *argv]
    made = _made(argv, define, required, make) if make else None
    try:
        _define_config(values, argv, made)
        rest = values(argv)[1:]
        config = values.config
        if config is not None:
            config.to_dict()  # a file that failed to load raises its error only when it is used
    except (Exception, SystemExit) as error:
        sentence = _explain(argv, values, error)
        if sentence is None:
            raise
        raise UserError(sentence) from None
    if rest:
        raise UserError(f"{rest[0]!r} is not a flag; {_usage(required)}")
    _check_given(values, required)
    _check_fields(config, config_lib.default())
    return config, values


def _check_fields(config: ConfigDict, known: ConfigDict, prefix: str = "") -> None:
    """Raises UserError for a field that a config file added: it would have no effect."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if key not in known:
            raise UserError(config_lib.unknown_field(config_lib.default(), name))
        if isinstance(value, ConfigDict) and name not in config_lib.BY_SOURCE:
            _check_fields(value, known[key], f"{name}.")


def _define_config(values, argv: list[str], made: ConfigDict | None) -> None:
    if made is not None:
        config_flags.DEFINE_config_dict("config", made, flag_values=values, sys_argv=argv)
        return
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv, lock_config=True)


def _made(argv: list[str], define, required, make) -> ConfigDict:
    """The config that `make` derives from the flags of the command."""
    values = flags.FlagValues()
    define(values)
    try:
        values(argv, known_only=True)
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    _check_given(values, required)
    return make(values)


def _check_given(values, required) -> None:
    for name in required:
        if values[name].value is None:
            raise UserError(f"--{name} is missing; {_usage(required)}")


def _usage(required) -> str:
    return "write " + " ".join(f"--{name}={VALUES[name]}" for name in required)


_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    ConfigDict: 'a dictionary like \'{"web": 0.7, "math": 0.3}\'',
}


def _explain(argv: list[str], values, error: Exception) -> str | None:
    """One sentence for an error of absl, ml_collections or a config file; None for any other."""
    path = _config_path(argv)
    inside = raised_inside(path, error)
    if inside:
        return inside
    if isinstance(error, SystemExit):
        return f"--config={path} cannot be loaded: it exits with {error.code!r}"
    if path == "":
        return "--config is empty; write --config=FILE[:VARIANT]"
    text = " ".join(str(error).split())
    if path and isinstance(error, SyntaxError | UnicodeError):
        return f"--config={path} is not a Python file: {first_line(error)}"
    call = re.search(r"TypeError: (get_config\(\) .*)$", text)
    if path and call:  # raised by the call, outside the file
        return f"--config={path}: {call[1]}"
    if path and "has no attribute 'get_config'" in text:
        return f"--config={path} does not define get_config()"
    if path and "object has no attribute 'to_dict'" in text:
        return f"--config={path}: get_config() must return a ConfigDict"
    wrong = re.match(r"flag --config\.([\w.]+)=(.*?): ", text)
    if wrong and _known(wrong[1]) is not None:
        kind = type(_known(wrong[1]))
        # The message ends the value at its first ": ", which a dictionary may hold.
        start = f"--config.{wrong[1]}="
        given = [arg.removeprefix(start) for arg in argv if arg.startswith(start)]
        value = given[-1] if given else wrong[2]
        return f"config.{wrong[1]}={value!r} must be {_KINDS.get(kind, kind.__name__)}"
    if isinstance(error, flags.UnrecognizedFlagError):
        return _unknown_flag(error.flagname, argv, values)
    if isinstance(error, OSError) and path:
        reason = re.search(r"\[Errno \d+\] ([^:']+)", text)
        return f"--config={path} cannot be loaded: {reason[1] if reason else text}"
    if isinstance(error, AttributeError | KeyError):
        for arg in argv:
            match = re.match(r"--config\.([\w.]+)", arg)
            if match and _known(match[1]) is None:
                return config_lib.unknown_field(config_lib.default(), match[1])
    known = (AttributeError, KeyError, flags.Error, OSError, TypeError, ValueError)
    return text if isinstance(error, known) else None


def _config_path(argv: list[str]) -> str | None:
    return next((arg.split("=", 1)[1] for arg in argv if arg.startswith("--config=")), None)


def raised_inside(path: str | None, error: BaseException | None) -> str | None:
    """The sentence for an exception raised in a config file (or below it), with its line; else None.

    Args:
      path: FILE or FILE:VARIANT.
    """
    if path is None:
        return None
    file = pathlib.Path(path.partition(":")[0]).resolve()
    # ml_collections raises some errors anew; the original is then the context.
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if pathlib.Path(f.filename).resolve() == file]
        if isinstance(error, SyntaxError) and error.filename:
            lines += [error.lineno] if pathlib.Path(error.filename).resolve() == file else []
        original = error.__context__
        if lines and not (original and "Traceback" in str(error)):
            if isinstance(error, UserError):
                return f"--config={path}: {first_line(error)}"
            kind, below = type(error).__name__, _module_of_the_user(frames[-1], file)
            return f"--config={path}, line {lines[-1]}: {kind}: {_reason(error)}{below}"
        error = original
    return None


def _reason(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return error.msg
    if isinstance(error, AttributeError) and error.args and isinstance(error.args[0], KeyError):
        # ml_collections on a field that does not exist: "'modle'\nDid you mean ...?", twice quoted.
        return " ".join(str(error.args[0].args[0]).split())
    return first_line(error)


def _module_of_the_user(frame: traceback.FrameSummary, config: pathlib.Path) -> str:
    """Where an exception was raised, if in a module that the config imports and no package is."""
    file = pathlib.Path(frame.filename).resolve()
    installed = (sys.prefix, sys.base_prefix, pathlib.Path(__file__).resolve().parent)
    if file == config or not file.is_file() or any(file.is_relative_to(p) for p in installed):
        return ""
    return f" ({file}, line {frame.lineno})"


def _unknown_flag(name: str, argv: list[str], values) -> str:
    """The sentence about a flag that does not exist: a config field without --config., or a typo."""
    fields = config_lib.flatten(config_lib.default().to_dict())
    ends = [f for f in fields if f == name] or [f for f in fields if f.endswith(f".{name}")]
    given = next((arg for arg in argv if re.match(rf"--?{re.escape(name)}(=|$)", arg)), "")
    if ends:
        value = given.partition("=")[2] or "VALUE"
        return f"unknown flag --{name}; did you mean --config.{ends[0]}={value}?"
    known = [flag for flag in values if not flag.startswith("config.")]
    close = difflib.get_close_matches(name, known, n=1)
    hint = (
        f"did you mean --{close[0]}?" if close else "config fields are written --config.KEY=VALUE"
    )
    return f"unknown flag --{name}; {hint}"


def _known(name: str):
    """The default of a field; None where there is no such field."""
    value = config_lib.default()
    for part in name.split("."):
        if not isinstance(value, ConfigDict) or part not in value:
            return None
        value = value[part]
    return value
