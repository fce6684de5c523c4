"""Which configurations draw samples class by class, and of how many classes."""

import ml_collections

from utils import require_positive


def describes_classifier(config: ml_collections.ConfigDict) -> bool:
    """Whether a configuration is DLSM's, of a score model guided by a classifier, and not QC's."""
    return "classifier" in config


def describes_cas(config: ml_collections.ConfigDict) -> bool:
    """Whether a configuration is of a classification accuracy score."""
    return "cas" in config


def draws_by_class(config: ml_collections.ConfigDict) -> bool:
    """Whether samples are drawn class by class: by a classifier, or a class-conditional score."""
    return describes_classifier(config) or bool(config.model.get("num_classes"))


def number_of_classes(config: ml_collections.ConfigDict) -> int:
    """How many classes the classifier tells apart, or else the class-conditional score.

    Raises:
        UserError: none.
    """
    if describes_classifier(config):
        return require_positive(config.classifier.classes, "config.classifier.classes")
    return require_positive(config.model.get("num_classes"), "config.model.num_classes")
