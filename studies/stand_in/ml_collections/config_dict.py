"""A dictionary whose entries are attributes too, as ``ml_collections.ConfigDict`` has them."""

from collections.abc import Mapping


class ConfigDict(dict):
    """Mappings in it become of this class."""

    def __init__(self, values: Mapping = ()) -> None:
        super().__init__()
        for name, value in dict(values).items():
            self[name] = ConfigDict(value) if isinstance(value, Mapping) else value

    __setattr__ = dict.__setitem__
    __delattr__ = dict.__delitem__

    def __getattr__(self, name: str) -> object:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def placeholder(kind: type) -> None:
    """A field without a value."""
