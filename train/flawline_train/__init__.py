"""From pictures of good parts to a bundle, and how good the bundle is."""

from flawline_train.evaluate import Evaluation, evaluate
from flawline_train.known_defects import CostModel
from flawline_train.training import Training, TrainProgress, train

__all__ = ["CostModel", "Evaluation", "TrainProgress", "Training", "evaluate", "train"]
