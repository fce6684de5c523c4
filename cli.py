"""What the entry scripts share: the --config flag, overrides by flags, and errors as sentences."""

import difflib
import functools
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NoReturn

import ml_collections
from absl import app, flags
from ml_collections.config_flags import config_flags

from utils import UserError, log_to


def define_common_flags(default_config: str | None = None) -> None:
    """Define ``--config FILE.py`` with its ``--config.field=value`` overrides, and what all share.

    That is --workdir and --deterministic. With a default configuration neither it nor a workdir
    has to be given.
    """
    try:
        config_flags.DEFINE_config_file(
            "config", default_config, "Configuration file.", lock_config=True
        )
    except Exception:  # the default is read at once, with what overrides it
        _fail_of_unknown_field(sys.argv, default_config)
        raise
    flags.DEFINE_string(
        "workdir", None, "Directory of the run; a relative one lies under results/."
    )
    flags.DEFINE_bool("deterministic", False, "Allow PyTorch deterministic algorithms only.")
    if default_config is None:
        flags.mark_flags_as_required(["config", "workdir"])


def define_dry_run() -> None:
    flags.DEFINE_bool(
        "dry_run", False, "Say what would be done, what it costs and what it writes; do nothing."
    )


def define_sampler_flags() -> None:
    """Define the flags that choose samples: --sampler, --ode and --scale."""
    flags.DEFINE_bool("ode", False, "Sample with the probability-flow ODE: --sampler ode.")
    flags.DEFINE_string("sampler", None, "Sampler: pc, ode, heun, …; else the config's.")
    flags.DEFINE_float("scale", None, "Weight of the guidance, where samples have classes.")


# Field of the configuration -> the flag that set it, once `apply_flags` has been called.
_set_by = {}


def apply_flags(config: ml_collections.ConfigDict, fields: Mapping[str, str]) -> None:
    """Set each field of `config` whose flag was given; `fields` maps flags to fields.

    Raises:
        UserError: the configuration has no such field.
    """
    for flag, field in fields.items():
        value = flags.FLAGS[flag].value
        if value is None:
            continue
        section, _, name = field.rpartition(".")
        group = config[section] if section else config
        if name not in group:
            raise UserError(f"This configuration has no field config.{field}, so no --{flag}.")
        group[name] = value
        _set_by[field] = flag


def choose_sampler(config: ml_collections.ConfigDict) -> None:
    """Let `config` name the samples that --sampler, --ode and --scale ask for.

    Raises:
        UserError: --ode and --sampler ask for different ones.
    """
    FLAGS, sampling = flags.FLAGS, config.sampling
    if FLAGS.ode and FLAGS.sampler not in (None, "ode"):
        raise UserError(
            f"--ode and --sampler {FLAGS.sampler} ask for two samplers; give one of them."
        )
    apply_flags(config, {"sampler": "sampling.method"})
    if FLAGS.ode:
        sampling.method = "ode"
    if FLAGS.scale is not None:
        sampling.plain_scale = sampling.scaling_factor
        apply_flags(config, {"scale": "sampling.scaling_factor"})


def typed_fields() -> set[str]:
    """The fields of the configuration that were typed, as flags or as --config.field=value."""
    return {*config_flags.get_override_values(flags.FLAGS["config"]), *_set_by}


def refuse_flags(names: Iterable[str], use: str) -> None:
    """Raise a UserError if one of the flags `names` was given, which `use` does not read."""
    given = [f"--{name}" for name in names if flags.FLAGS[name].present]
    if given:
        raise UserError(f"{', '.join(given)} cannot be used with {use}; leave it out.")


def make_deterministic() -> None:
    """Let PyTorch use deterministic algorithms only."""
    import os

    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def launch(main: Callable[[], object], pairs: Sequence[str] = ()) -> None:
    """Run `main()` after parsing flags; a mistake ends in one sentence and exit status 1.

    The flags in `pairs` may be given as ``--name A B`` for ``--name=A --name=B``.
    """
    parse = functools.partial(_parse_flags, pairs=pairs)
    app.run(lambda _: _guarded(main), flags_parser=parse)


def _spread(arguments, pairs):
    """`arguments` with ``--name=A --name=B`` for ``--name A B``, for each name in `pairs`."""
    spread, name, names = [], None, [f"--{name}" for name in pairs]
    for argument, after in zip(arguments, [*arguments[1:], "-"], strict=True):
        if name is not None and not argument.startswith("-"):
            spread.append(f"{name}={argument}")
            continue
        name = argument if argument in names and not after.startswith("-") else None
        if name is None:
            spread.append(argument)
    return spread


def _last_of_each(arguments):
    """`arguments` without an override of a field that a later one repeats.

    ml_collections would append a second tuple to the first.
    """
    arguments = list(arguments)
    for index in range(len(arguments) - 1, 0, -1):  # --config.field value, as two words
        name, value = arguments[index - 1 : index + 1]
        if name.startswith("--config.") and "=" not in name and not value.startswith("-"):
            arguments[index - 1 : index + 1] = [f"{name}={value}"]
    names = [argument.partition("=")[0] for argument in arguments]
    last = {name: index for index, name in enumerate(names)}
    return [
        argument
        for index, (argument, name) in enumerate(zip(arguments, names, strict=True))
        if not ("=" in argument and name.lstrip("-").startswith("config.") and last[name] > index)
    ]


def _parse_flags(arguments, pairs=()):
    try:
        rest = flags.FLAGS(_last_of_each(_spread(arguments, pairs)))
        if "config" in flags.FLAGS:
            flags.FLAGS.config.keys()  # a file that is not there fails at the first look
        return rest
    except flags.Error as error:
        fail(_last_line(error))
    except Exception as error:  # whatever the configuration file itself raises
        _fail_of_unknown_field(arguments)
        fail(f"The configuration cannot be loaded: {type(error).__name__}: {_last_line(error)}")


def _fail_of_unknown_field(arguments, default=None):
    """Fail if one of `arguments` overrides a field that the configuration lacks; name its like.

    The configuration is that of the arguments, else the file `default`.
    """
    overrides = [re.match(r"--?(?:no)?config\.([^=]+)", argument) for argument in arguments]
    names = [match[1] for match in overrides if match]
    files = [
        argument.partition("=")[2] or after
        for argument, after in zip(arguments, [*arguments[1:], ""], strict=True)
        if argument.partition("=")[0] in ("--config", "-config")
    ]
    file = files[-1] if files else default
    if not (names and file):
        return
    try:
        config = config_flags.ConfigFileFlagParser("config").parse(file)
        fields = dict(_fields(config))
    except Exception:  # the file itself is at fault
        return
    for name in names:
        if name not in fields:
            alike = nearest_fields(name, fields)
            said = f" Did you mean {' or '.join(f'config.{field}' for field in alike)}?"
            fail(f"The configuration has no field config.{name}.{said if alike else ''}")


def _fields(config, prefix=""):
    """Names and values of the sections and fields of a configuration, as overrides spell them."""
    for name, value in config.items():
        yield prefix + name, value
        if isinstance(value, ml_collections.ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")


def nearest_fields(name: str, fields: Collection[str]) -> list[str]:
    """Which of `fields`, dotted names, `name` may have meant; a list, empty where none is near."""
    section, _, last = name.rpartition(".")
    alike = difflib.get_close_matches(name, fields, n=1)
    namesakes = [field for field in fields if field.rpartition(".")[2] == last]
    # A section that is there was hardly mistyped: the field is looked for in the others.
    return namesakes or alike if section in fields else alike or namesakes


def _last_line(error):
    """The gist of an error whose text may hold a whole traceback."""
    flag, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or ["unknown"]
    return f"{flag.removesuffix(':')}: {rest[-1]}" if rest else flag


def _guarded(main):
    log_to()
    try:
        if "deterministic" in flags.FLAGS and flags.FLAGS.deterministic:
            make_deterministic()
        main()
    except UserError as error:
        fail(_in_flags(str(error)))
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        fail(f"{error.strerror}: {error.filename}." if error.filename else str(error))
    except (MemoryError, RuntimeError) as error:
        # PyTorch has no one type for it: CUDA's allocator says the first, the CPU's the second.
        if not isinstance(error, MemoryError) and not any(
            sign in str(error) for sign in ("out of memory", "can't allocate memory")
        ):
            raise
        fail(
            f"The memory does not suffice ({_last_line(error)}); lower --config.eval.microbatch, "
            "--config.training.microbatch, the batch size or the size of the network."
        )
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _in_flags(message):
    """`message` with the flags that were typed in place of the fields that they set."""
    for field, flag in _set_by.items():
        message = re.sub(rf"(--)?config\.{re.escape(field)}\b", f"--{flag}", message)
    return message


def fail(message: object) -> NoReturn:
    """Print a sentence to standard error and exit with status 1."""
    # One line, whatever names of files are in it: none may move the cursor or add a line.
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message))
    print(f"Error: {text}", file=sys.stderr)
    sys.exit(1)
