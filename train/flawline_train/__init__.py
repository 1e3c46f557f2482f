"""From pictures of good parts to a bundle, and how good the bundle is."""

from flawline_train.evaluate import Evaluation, evaluate
from flawline_train.training import Training, TrainProgress, train

__all__ = ["Evaluation", "TrainProgress", "Training", "evaluate", "train"]
