"""What distinguishes each method: the check of its own paper, on small parts."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from tests.train_.networks import HW, WIDTH, trained, unseen
from torch import Tensor

from flawline_train.autoencoders import Autoencoder, Batch
from flawline_train.autoencoders.codebook import Codebook, perplexity
from flawline_train.autoencoders.composed import ComposedAutoencoder
from flawline_train.autoencoders.latent_prior import LatentPrior
from flawline_train.autoencoders.masked import MaskedAutoencoder
from flawline_train.autoencoders.methods import build
from flawline_train.autoencoders.penalties import gaussian_kl, jacobian_norm
from flawline_train.autoencoders.quantized import HierarchicalAutoencoder, VectorQuantizedAutoencoder
from flawline_train.autoencoders.variational import VariationalAutoencoder
from flawline_train.dissimilarity import structural_dissimilarity

NOISE = 0.05
COLLAPSING_BETA = 300.0


def squared_error(x: Tensor, y: Tensor) -> float:
    return float((x - y).square().mean())


def dissimilarity(network: Autoencoder) -> float:
    return float(structural_dissimilarity(unseen(), network(unseen()).clamp(0, 1)).mean())


# vanilla


def test_the_latent_size_is_the_rank_of_the_bottleneck() -> None:
    """However many hidden units there are, the reconstruction moves in as many directions as the code has numbers."""
    network = build("vanilla", WIDTH, HW, latent=5)
    network.load_state_dict(trained("vanilla", latent=5).state_dict())
    network = network.double().eval()
    generator = torch.Generator().manual_seed(0)
    x = unseen()[:1].double().requires_grad_()
    y = network(x)
    directions = torch.randn(12, *y.shape, generator=generator, dtype=torch.float64)
    rows = [torch.autograd.grad((y * direction).sum(), x, retain_graph=True)[0].flatten() for direction in directions]
    singular = torch.linalg.svdvals(torch.stack(rows))  # 12 random combinations show a rank up to 12
    assert float(singular[4]) > 1e-6 * float(singular[0]) > 1e3 * float(singular[5])


# convolutional, ssim, denoising


@pytest.mark.parametrize("name", ["convolutional", "contractive", "vector-quantized", "masked"])
@torch.inference_mode()
def test_what_is_no_part_does_not_come_through(name: str) -> None:
    """The bottleneck is one: of noise, which no code can hold, nearly everything is missing in the reconstruction."""
    noise = torch.randn(unseen().shape, generator=torch.Generator().manual_seed(0))
    missing = squared_error(trained(name)(0.5 + 0.2 * noise), 0.5 + 0.2 * noise)
    assert missing > 0.9 * 0.2**2


@torch.inference_mode()
def test_ssim_training_gives_the_better_ssim() -> None:
    """Against the same network trained with squared error for as many steps."""
    assert dissimilarity(trained("ssim")) < 0.9 * dissimilarity(trained("convolutional"))


def test_ssim_is_scored_by_ssim() -> None:
    """It says which error it wants; others leave that to calibration."""
    assert build("ssim", 4, HW).error_channels == ("ssim",)
    assert build("convolutional", 4, HW).error_channels is None


@torch.inference_mode()
def test_denoising_takes_noise_away() -> None:
    """The answer to a noisy part is nearer to the clean part than the noisy one is: at least 1 dB of PSNR."""
    noisy = unseen() + NOISE * torch.randn(unseen().shape, generator=torch.Generator().manual_seed(0))
    before, after = squared_error(noisy, unseen()), squared_error(trained("denoising", 800)(noisy), unseen())
    gain_db = 10 * float(torch.log10(torch.tensor(before / after)))
    assert gain_db > 1, f"{gain_db:.2f} dB"


# sparse and contractive


@torch.inference_mode()
def test_the_penalty_makes_the_code_sparse() -> None:
    """Fewer units are active than without it, at most a quarter, and the parts still come back."""
    with_it, without = trained("sparse"), trained("sparse", sparsity=0.0)
    active, active_without = (
        float((cast(ComposedAutoencoder, network).encode(unseen()) > 0).float().mean())
        for network in (with_it, without)
    )
    assert active < 0.25 and active < 0.6 * active_without, f"{active:.2f} active, {active_without:.2f} without"
    assert squared_error(with_it(unseen()), unseen()) < 2 * squared_error(without(unseen()), unseen())


def relative_jacobian(network: Autoencoder) -> float:
    """|J|_F^2 over the code's variance, exactly: one backward pass a dimension of the code."""
    total, n = 0.0, 8
    x = unseen()[:n].clone().requires_grad_()
    code = cast(ComposedAutoencoder, network).encode(x)
    for d in range(code.shape[1]):
        (gradient,) = torch.autograd.grad(code[:, d].sum(), x, retain_graph=True)
        total += float(gradient.square().sum()) / n
    return total / float(code.detach().var(0).sum())


def test_the_penalty_contracts_the_code() -> None:
    """A change of a pixel moves the code less, in units of its own variance, than without the penalty: by half at least."""
    settings = {"latent": 16}
    with_it, without = trained("contractive", **settings), trained("contractive", contraction=0.0, **settings)
    found, wanted = relative_jacobian(with_it), relative_jacobian(without)
    assert found < 0.5 * wanted, f"{found:.2f}, without the penalty {wanted:.2f}"


def test_hutchinson_estimates_the_norm() -> None:
    """Of a linear map, whose Jacobian is known: within 5 % over 2000 probes."""
    torch.manual_seed(0)
    weights = torch.randn(6, 12)
    x = torch.rand(1, 3, 2, 2, requires_grad=True)
    estimates = [float(jacobian_norm(x.flatten(1) @ weights.T, x)) for _ in range(2000)]
    assert sum(estimates) / 2000 == pytest.approx(float(weights.square().sum()), rel=0.05)


# variational and beta


def test_kl_against_torch() -> None:
    """The closed form is torch's, dimension by dimension."""
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(7, 5, generator=generator), torch.randn(7, 5, generator=generator)
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    standard = torch.distributions.Normal(torch.zeros(5), torch.ones(5))
    wanted = torch.distributions.kl_divergence(normal, standard).mean(0)
    torch.testing.assert_close(gaussian_kl(mean, log_variance), wanted)


def used_dimensions(network: Autoencoder) -> int:
    """Dimensions that say at least a twentieth of a nat about a part."""
    return int((cast(VariationalAutoencoder, network).kl_per_dimension(unseen()) > 0.05).sum())


def test_beta_uses_less_of_the_code() -> None:
    """The same code costs more: fewer nats than with the plain bound, but not none."""
    plain, beta = (
        float(cast(VariationalAutoencoder, trained(name)).kl_per_dimension(unseen()).sum())
        for name in ("variational", "beta")
    )
    assert 2 < beta < 0.7 * plain, f"{beta:.1f} nats, {plain:.1f} with beta = 1"


@torch.inference_mode()
def test_warm_up_prevents_posterior_collapse() -> None:
    """At a high beta the code dies when pulled from the first step, and is used when the pull grows."""
    collapsed = trained("beta", beta=COLLAPSING_BETA, warm_up=0.0, latent=16)
    warmed = trained("beta", beta=COLLAPSING_BETA, warm_up=1.0, latent=16)
    assert used_dimensions(collapsed) == 0
    assert used_dimensions(warmed) >= 2
    assert squared_error(warmed(unseen()), unseen()) < 0.9 * squared_error(collapsed(unseen()), unseen())


# vector-quantized and hierarchical


@torch.inference_mode()
def test_the_codebook_is_used() -> None:
    """Perplexity over unseen parts, and no code that training has left dead."""
    network = cast(VectorQuantizedAutoencoder, trained("vector-quantized", codes=32))
    found = perplexity(network.indices(unseen()), 32)
    assert found > 12, f"perplexity {found:.1f} of 32"
    counts = network.bottleneck.codebook.counts
    assert float((counts < 0.05 * counts.mean()).float().mean()) < 0.1


def test_codes_settle_on_clusters_and_dead_ones_are_revived() -> None:
    """Four clusters, eight codes: each cluster gets one, though all codes but one begin far from every vector."""
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    book = Codebook(8, 2)
    book.codes.copy_(torch.cat([centres[:1], torch.full((7, 2), 1e3)]))
    book.counts.fill_(8.0)
    book.sums.copy_(book.codes * 8)
    for _ in range(600):
        rows = centres[torch.randint(4, (64,))] + 0.1 * torch.randn(64, 2)
        book.learn(rows.T.reshape(1, 2, 8, 8))
    distances = torch.cdist(centres, book.codes).min(1).values
    assert float(distances.max()) < 0.3
    assert float(book.codes.abs().max()) < 10


def test_nearest_code_against_plain_distances() -> None:
    """What the products find is what distances find."""
    torch.manual_seed(1)
    book, vectors = Codebook(11, 5), torch.randn(2, 5, 3, 4)
    wanted = torch.cdist(vectors.permute(0, 2, 3, 1).reshape(-1, 5), book.codes).argmin(1).view(2, 3, 4)
    assert torch.equal(book.indices(vectors), wanted)
    assert torch.equal(book(vectors), book.codes[wanted].permute(0, 3, 1, 2))


@pytest.mark.parametrize(("indices", "wanted"), [([0, 0, 0, 0], 1.0), ([0, 1, 2, 3], 4.0), ([0, 0, 1, 1], 2.0)])
def test_perplexity(indices: list[int], wanted: float) -> None:
    """The number of codes in use, where they are used alike."""
    assert perplexity(torch.tensor(indices), 8) == pytest.approx(wanted)


@torch.inference_mode()
def test_both_levels_are_used() -> None:
    """Each level has several words in use; the top alone gives a coarser part, but more than the usual one."""
    network = cast(HierarchicalAutoencoder, trained("hierarchical"))
    top, bottom = network.indices(unseen())
    assert top.shape == (32, HW[0] // 16, HW[1] // 16) and bottom.shape == (32, HW[0] // 8, HW[1] // 8)
    assert perplexity(top, 64) > 4 and perplexity(bottom, 64) > 4
    both, alone = squared_error(network(unseen()), unseen()), squared_error(network.decode_top(unseen()), unseen())
    usual = squared_error(network.usual.expand_as(unseen()), unseen())
    assert 1.1 * both < alone < 0.8 * usual, f"both {both:.5f}, top alone {alone:.5f}, usual {usual:.5f}"


# masked and attention


@torch.inference_mode()
def test_hidden_patches_are_told_from_the_rest() -> None:
    """What was hidden comes back better than as the mean of the training parts."""
    network = cast(MaskedAutoencoder, trained("masked"))
    for mask in network.masks:
        hidden = mask.expand(3, -1, -1).bool()
        told = (network(unseen()) - unseen()).square()[:, hidden].mean()
        usual = (network.usual - unseen()).square()[:, hidden].mean()
        assert float(told) < 0.8 * float(usual), f"{float(told):.5f}, the mean picture {float(usual):.5f}"


@torch.inference_mode()
def test_no_pixel_is_seen_when_it_is_predicted() -> None:
    """Whatever a patch holds, the prediction for that patch is the same to the bit; the others notice."""
    network = trained("masked")
    x = unseen()[:1].clone()
    changed = x.clone()
    patch = cast(MaskedAutoencoder, network).patch
    changed[..., patch : 2 * patch, 2 * patch : 3 * patch] = 1.0
    difference = (network(x) - network(changed)).abs().sum(1)[0]
    assert not difference[patch : 2 * patch, 2 * patch : 3 * patch].any()
    assert float(difference[patch : 2 * patch, 3 * patch : 4 * patch].max()) > 1e-4


def test_the_two_masks_are_complementary() -> None:
    """Every pixel is hidden in exactly one copy, also where the frame is no whole number of patches."""
    for hw in ((48, 64), (16, 112), (208, 160)):
        masks = cast(MaskedAutoencoder, build("masked", 4, hw)).masks
        assert masks.shape == (2, 1, *hw)
        assert torch.equal(masks.sum(0), torch.ones(1, *hw))


def ends_batch(n: int, seed: int) -> Batch:
    """Long parts whose two ends have one random colour; in the input the left end is hidden: 32 x 256 pixels."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(n, 3, 1, 1, generator=generator)
    target = torch.full((n, 3, 32, 256), 0.5)
    target[..., :16] = target[..., -16:] = colours
    inputs = target.clone()
    inputs[..., :16] = 0.5
    return Batch(inputs, target, torch.zeros(n, 1, 32, 256), 0.5)


def left_end_error(method: str) -> float:
    """After 300 steps of showing it such parts; of the error of answering mid-grey."""
    torch.manual_seed(0)
    network = build(method, WIDTH, (32, 256)).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step in range(300):
        loss = network.loss(ends_batch(16, step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    batch = ends_batch(64, 10_000)
    with torch.inference_mode():  # by the batch's own statistics: after 300 steps the running ones are not there yet
        left = network(batch.inputs)[..., :16]
    return squared_error(left, batch.target[..., :16]) / squared_error(
        torch.full_like(left, 0.5), batch.target[..., :16]
    )


@pytest.mark.slow
def test_attention_learns_what_lies_far_apart() -> None:
    """One end of a long part tells the colour of the other; convolutions of this depth do not reach from end to end."""
    attending, convolving = left_end_error("attention"), left_end_error("convolutional")
    assert attending < 0.75, f"{attending:.2f} of the error of knowing nothing"
    assert convolving > 0.95, f"{convolving:.2f}: the parts are not long enough to tell the two apart"


# The prior that parts are drawn from


def test_a_prior_that_was_not_fitted_is_a_standard_gaussian() -> None:
    """What a variational autoencoder is pulled towards."""
    drawn = LatentPrior(8).sample(4000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), torch.zeros(8), rtol=0, atol=0.08)
    torch.testing.assert_close(torch.cov(drawn.T), torch.eye(8), rtol=0, atol=0.1)


def test_samples_have_the_codes_mean_and_covariance() -> None:
    """A stretched and shifted Gaussian in 6 dimensions, of which 3 vary."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(500, 3, generator=generator) @ torch.randn(3, 6, generator=generator) * 3 + 5
    prior = LatentPrior(6)
    prior.fit(codes)
    drawn = prior.sample(8000, generator)
    scale = float(torch.cov(codes.T).abs().max())
    torch.testing.assert_close(drawn.mean(0), codes.mean(0), rtol=0, atol=0.1 * scale**0.5)
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(codes.T), rtol=0, atol=0.15 * scale)


def test_two_kinds_of_part_stay_apart() -> None:
    """Codes at -1 and +1 give samples near both; the middle stays rarer than with one Gaussian (0.38 of it)."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.cat([torch.full((50, 1), -1.0), torch.full((50, 1), 1.0)]) + 0.05 * torch.randn(
        100, 1, generator=generator
    )
    prior = LatentPrior(1)
    prior.fit(codes)
    drawn = prior.sample(4000, generator)
    assert float((drawn.abs() < 0.5).float().mean()) < 0.25


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_any_number_of_codes_will_do(n: int) -> None:
    """A prior of one part cannot be fitted and is left as it was; a thousand are more than it keeps."""
    prior = LatentPrior(3)
    prior.fit(torch.randn(n, 3, generator=torch.Generator().manual_seed(0)))
    assert bool(torch.isfinite(prior.sample(10, torch.Generator().manual_seed(0))).all())
