"""The implementations that the metrics are tested against, imported where one is asked for."""

import importlib
import types

from utils import UserError


def load(module: str, package: str) -> types.ModuleType:
    """The `module` of an optional `package`.

    Raises:
        UserError: it does not import in this environment.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{package} does not import here ({error}). TF-GAN and TensorFlow Hub need an "
            "environment of their own, with Python 3.10 or 3.11 and requirements-tfgan.txt."
        ) from None
