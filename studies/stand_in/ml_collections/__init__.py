"""What `studies.gpu` needs of ml_collections, for a machine without that wheel."""

from ml_collections.config_dict import ConfigDict

__all__ = ["ConfigDict"]
