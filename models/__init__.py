"""The score networks, one registry entry each."""

from models.ncsnpp import NCSNpp, NCSNppMod, model_options
from utils import lookup

MODELS = {"ncsnpp": NCSNpp, "ncsnpp_mod": NCSNppMod}


def create_model(config):
    """The freshly initialised score network that ``config.model.name`` names.

    Raises:
        UserError: the name or one of the network's options is unknown.
    """
    network = lookup(MODELS, config.model.name, "config.model.name")
    return network(**model_options(config))
