"""Networks: plain `nn.Module`s from a picture to its reconstruction, nothing else."""

from flawline_train.autoencoders.filtering import FilteringAutoencoder

__all__ = ["FilteringAutoencoder"]
