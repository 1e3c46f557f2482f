"""What is added to, or takes the place of, the squared error. All of it is computed in float32, whatever autocast does."""

from __future__ import annotations

import torch
from torch import Tensor

from flawline_train.dissimilarity import structural_dissimilarity

__all__ = ["gaussian_kl", "jacobian_norm", "ssim_loss"]


def ssim_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - SSIM as the graph measures it; both (B, 3, H, W) float32 → a scalar in 0-2."""
    with torch.autocast(output.device.type, enabled=False):
        return structural_dissimilarity(target, output).mean()


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) of each dimension, averaged over the batch: (B, D) twice → (D,) in nats."""
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean(0)


def jacobian_norm(code: Tensor, inputs: Tensor, *, create_graph: bool = False) -> Tensor:
    """Estimate of the batch's mean squared Frobenius norm of d code / d input; `inputs` require a gradient.

    E |v J|^2 = |J|_F^2 for v ~ N(0, I) (Hutchinson 1989): one backward pass instead of one for each dimension of the code.
    """
    flat = code.float().flatten(1)
    probe = torch.randn_like(flat)
    (gradient,) = torch.autograd.grad((flat * probe).sum(), inputs, create_graph=create_graph)
    return gradient.float().square().sum((1, 2, 3)).mean()
