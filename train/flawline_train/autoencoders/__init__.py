"""Networks: plain modules from a picture to its reconstruction, each with the loss that it is trained with.

`methods.METHODS` lists them by name.
"""

from flawline_train.autoencoders.autoencoder import Autoencoder, Batch, Corruption, Reconstruction
from flawline_train.autoencoders.filtering import FilteringAutoencoder

__all__ = ["Autoencoder", "Batch", "Corruption", "FilteringAutoencoder", "Reconstruction"]
