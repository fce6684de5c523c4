"""Which configurations draw samples class by class, and of how many classes."""

import ml_collections

from utils import require_positive


def describes_classifier(config: ml_collections.ConfigDict) -> bool:
    """Whether a configuration is DLSM's, of a score model guided by a classifier, and not QC's."""
    return "classifier" in config


def draws_by_class(config: ml_collections.ConfigDict) -> bool:
    """Whether samples are drawn class by class: there is a scale of their guidance."""
    return "scaling_factor" in config.sampling


def number_of_classes(config: ml_collections.ConfigDict) -> int:
    """How many classes the classifier tells apart, or else the class-conditional score.

    Raises:
        UserError: none.
    """
    if describes_classifier(config):
        return require_positive(config.classifier.classes, "config.classifier.classes")
    return require_positive(config.model.get("num_classes"), "config.model.num_classes")
