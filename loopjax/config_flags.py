"""Command lines with a config: --config=FILE[:VARIANT] [--config.key=value ...] and flags.

The keys, and what they mean, are in loopjax/config.py.
"""

import re

from absl import flags
from ml_collections import ConfigDict, config_flags

from loopjax import config as config_lib
from loopjax.errors import UserError


def parse(
    verb: str, text: str, argv: list[str], define=lambda values: None, required=(), make=None
):
    """(config, flags) of a command line; raises UserError in one sentence.

    Args:
      verb, text: name of the command, and its help.
      define: defines the flags of the verb on an `absl.flags.FlagValues`.
      required: names of those that must be given, beside --config.
      make: of these flags makes the config that is overridden, where no file has it.
    """
    values = flags.FlagValues()
    argv = [f"loopjax {verb}", *argv]
    define(values)
    made = _made(argv, define, required, make) if make else None
    required = required if make else ("config", *required)
    try:
        _define_config(values, argv, made)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(_explain(argv, error)) from None
    if any(arg in ("-h", "--help", "--helpfull") for arg in argv):
        print(text, *map(values.module_help, values.flags_by_module_dict()), sep="\n")
        raise SystemExit(0)
    usage = _usage(required)
    try:
        rest = values(argv)[1:]
        config = values.config
        if config is not None:
            config.to_dict()  # a file that failed to load says so only when it is used
    except (AttributeError, KeyError, flags.Error, OSError, TypeError, ValueError) as error:
        raise UserError(_explain(argv, error)) from None
    if rest:
        raise UserError(f"{rest[0]!r} is not a flag; {usage}")
    for name in required:
        if values[name].value is None:
            raise UserError(f"--{name} is missing; {usage}")
    return config, values


def _define_config(values, argv: list[str], made: ConfigDict | None) -> None:
    if made is not None:
        config_flags.DEFINE_config_dict("config", made, flag_values=values, sys_argv=argv)
        return
    config_flags.DEFINE_config_file(
        "config",
        help_string="a file of configs/, with a variant behind a colon",
        flag_values=values,
        sys_argv=argv,
        lock_config=True,
    )


def _made(argv: list[str], define, required, make) -> ConfigDict:
    """The config that the flags beside it make; the defaults where only help is asked for."""
    if any(arg in ("-h", "--help", "--helpfull") for arg in argv):
        return config_lib.default()
    values = flags.FlagValues()
    define(values)
    try:
        values(argv, known_only=True)
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from None
    for name in required:
        if values[name].value is None:
            raise UserError(f"--{name} is missing; {_usage(required)}")
    return make(values)


def _usage(required) -> str:
    return "write " + " ".join(f"--{name}={_EXAMPLES[name]}" for name in required)


_EXAMPLES = {
    "config": "FILE", "workdir": "DIR", "checkpoint": "DIR", "pairs": "FILE.jsonl",
}  # fmt: skip


_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    ConfigDict: 'a dictionary like \'{"web": 0.7, "math": 0.3}\'',
}


def _explain(argv, error) -> str:
    """One sentence for what absl and ml_collections raise."""
    path = next((a.split("=", 1)[1] for a in argv if a.startswith("--config=")), None)
    text = " ".join(str(error).split())
    if "Traceback" in text:  # an error of the config file itself: its last line says what
        return f"--config={path}: " + str(error).strip().splitlines()[-1]
    wrong = re.match(r"flag --config\.([\w.]+)=(.*?): ", text)
    if wrong and _known(wrong[1]) is not None:
        kind = type(_known(wrong[1]))
        return f"config.{wrong[1]}={wrong[2]!r} must be {_KINDS.get(kind, kind.__name__)}"
    if isinstance(error, OSError) and path:
        reason = re.search(r"\[Errno \d+\] ([^:']+)", text)
        return f"--config={path} cannot be loaded: {reason[1] if reason else text}"
    if isinstance(error, AttributeError | KeyError):
        for arg in argv:
            match = re.match(r"--config\.([\w.]+)", arg)
            if match and _known(match[1]) is None:
                return config_lib.unknown_field(config_lib.default(), match[1])
    return text


def _known(name: str):
    """The default of a field; None where there is no such field."""
    value = config_lib.default()
    for part in name.split("."):
        if not isinstance(value, ConfigDict) or part not in value:
            return None
        value = value[part]
    return value
