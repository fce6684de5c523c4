"""The implementations that the metrics are tested against, imported where one is asked for."""

import types

from utils import UserError


def tfgan() -> types.ModuleType:
    """The module of TF-GAN.

    Raises:
        UserError: it is not installed in this environment.
    """
    try:
        import tensorflow_gan
    except ImportError as error:
        raise UserError(
            f"TF-GAN does not import here ({error}); it needs an environment of its own, with "
            "Python 3.10 or 3.11 and requirements-tfgan.txt."
        ) from None
    return tensorflow_gan
