"""Flags of the entry scripts: --config, flags that override its fields, and error messages."""

import functools
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn

import ml_collections
from absl import app, flags
from ml_collections.config_flags import config_flags

from utils import VERSION, UserError, is_first, log_to

WAIT_FOR_RANK_0 = 5  # seconds


def define_common_flags() -> None:
    """Define --config, with its overrides ``--config.field=value``, --workdir, --deterministic."""
    config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Directory of the run; a relative one is below results/.")
    flags.DEFINE_bool("deterministic", False, "Allow PyTorch deterministic algorithms only.")
    flags.mark_flags_as_required(["config", "workdir"])


def define_dry_run() -> None:
    flags.DEFINE_bool(
        "dry_run", False, "Print the configuration and what the command would cost; do nothing."
    )


def define_sampler_flags() -> None:
    """Define the flags that choose samples: --sampler, --ode and --scale."""
    flags.DEFINE_bool("ode", False, "Sample with the probability-flow ODE: --sampler ode.")
    flags.DEFINE_string("sampler", None, "Sampler: pc, ode, heun, …; else the config's.")
    flags.DEFINE_float("scale", None, "Weight of the guidance, where samples have classes.")


# Field of the configuration -> the flag that set it. `apply_flags` fills it.
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
    """Set the sampler and scale of `config` by --sampler, --ode and --scale.

    Raises:
        UserError: --ode and --sampler name different samplers.
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
    """The fields set on the command line, by flags or by --config.field=value."""
    return {*config_flags.get_override_values(flags.FLAGS["config"]), *_set_by}


def refuse_flags(names: Iterable[str], use: str) -> None:
    """Raise a UserError if a flag in `names`, which `use` does not read, was given."""
    _refuse([f"--{name}" for name in names if flags.FLAGS[name].present], use)


def refuse_fields(names: Iterable[str], use: str) -> None:
    """Raise a UserError if --config.field=value sets a field in `names`, which `use` ignores."""
    typed = config_flags.get_override_values(flags.FLAGS["config"])
    _refuse([f"--config.{name}" for name in names if name in typed], use)


def _refuse(unread, use):
    if unread:
        them = "it" if len(unread) == 1 else "them"
        raise UserError(f"{', '.join(unread)} cannot be used with {use}; leave {them} out.")


def make_deterministic() -> None:
    """Let PyTorch use deterministic algorithms only."""
    import os

    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def launch(main: Callable[[], object], lists: Sequence[str] = (), words: bool = False) -> None:
    """Run `main()` after parsing flags; a UserError prints its message and exits with status 1.

    Args:
        lists: flags that may be given as ``--name A B`` for ``--name=A --name=B``.
        words: whether the command takes positional arguments.
    """
    FLAGS = flags.FLAGS
    for module, defined in list(FLAGS.flags_by_module_dict().items()):
        for flag in defined if not module.startswith("absl") else ():
            FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # --help prints these
    parse = functools.partial(_parse_flags, lists=lists, words=words)
    app.run(lambda _: _guarded(main), flags_parser=parse)


def _repeat_flags(arguments, lists):
    """`arguments` with ``--name=A --name=B`` for ``--name A B``, for each name in `lists`."""
    repeated, name = [], None
    for argument, after in zip(arguments, [*arguments[1:], "-"]):
        if name and not argument.startswith("-"):
            repeated.append(f"{name}={argument}")
            continue
        name = argument if argument[2:] in lists and not after.startswith("-") else None
        if name is None:
            repeated.append(argument)
    return repeated


def _last_overrides(arguments):
    """`arguments` without overrides of a field that a later one repeats.

    ml_collections would append a second tuple to the first.
    """
    joined = []
    for argument in arguments:
        if joined and re.fullmatch(r"--config\.[^=]+", joined[-1]) and argument[:1] != "-":
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    names = [argument.partition("=")[0] for argument in joined]
    return [
        argument
        for index, (argument, name) in enumerate(zip(joined, names), start=1)
        if not name.startswith("--config.") or name not in names[index:]
    ]


def _parse_flags(arguments, lists, words):
    FLAGS = flags.FLAGS
    if "--version" in arguments:
        print(VERSION)
        sys.exit(0)
    try:
        script, *rest = FLAGS(_last_overrides(_repeat_flags(arguments, lists)))
        if rest and not words:
            fail(f"{' '.join(rest)} belongs to no flag; give each flag its value as --name=value.")
        if "config" in FLAGS:
            FLAGS.config.keys()  # a missing file raises at the first access
        return [script, *rest]
    except flags.Error as error:
        if missing := re.match(r"flag --(\w+)=None: Flag --\w+ must have a value", str(error)):
            use = FLAGS[missing[1]].help.partition(";\n")[0]
            fail(f"The flag --{missing[1]} is missing: {use[0].lower()}{use[1:]}")
        fail(_last_line(error))
    except (AttributeError, KeyError) as error:
        fail(_unknown_field(error))
    except Exception as error:  # raised by the configuration file
        reason = re.sub(r"(?s).*(failure to load:|\[Errno \d+\])\s", "", str(error))
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        fail(f"The configuration cannot be loaded: {kind}{_last_line(reason)}")


def _unknown_field(error):
    """The message for ml_collections' error, which names the field and a similar one."""
    if "'get_config'" in str(error):
        return "The configuration file has no function get_config."
    name, *hint = str(error).replace("\\n", "\n").replace("\\'", "").strip("'\"").splitlines()
    return " ".join([f"The configuration has no field {name}.", *hint])


def _last_line(error):
    """The first and the last line of an error message, which may contain a traceback."""
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
        # CUDA's allocator raises the first message, the CPU's the second.
        signs = ("out of memory", "can't allocate memory")
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in signs):
            raise
        fail(
            f"Out of memory ({_last_line(error)}); lower --config.eval.microbatch, "
            "--config.training.microbatch, the batch size or the size of the network."
        )
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _in_flags(message):
    """`message` with typed flags in place of the fields that they set."""
    for field, flag in _set_by.items():
        message = re.sub(rf"(--)?config\.{re.escape(field)}\b", f"--{flag}", message)
    return message


def fail(message: object) -> NoReturn:
    """Print an error message to standard error and exit with status 1.

    If all ranks fail, only rank 0 prints: the others wait, and torchrun ends them meanwhile.
    """
    if not is_first():
        time.sleep(WAIT_FOR_RANK_0)
    # Names of files may contain control characters.
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message))
    print(f"Error: {text}", file=sys.stderr)
    sys.exit(1)
