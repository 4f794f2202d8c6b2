"""The posterior over positions is Bayes' rule, and spreading by it keeps signs and totals."""

import torch

from captum_mi import InfoBottleneckAttribution
from captum_mi.grid import resize
from captum_mi.maps.posterior import capacity_prior, position_posterior
from captum_mi.model.hooks import capture_only


def test_the_posterior_finds_the_position_that_shows_the_class():
    # A generator with a known truth: one of 3 positions, drawn from a prior, shows symbol t
    # where all others show noise; two layers see noisy symbols. Bayes' rule by counting.
    generator = torch.manual_seed(0)
    n, positions, symbols = 200_000, 3, 2
    prior = torch.tensor([0.5, 0.3, 0.2])
    where = torch.multinomial(prior, n, replacement=True, generator=generator)
    likely, unlikely = torch.tensor([0.2, 0.8]), torch.tensor([0.6, 0.4])  # p(symbol | t), p(s)
    shown = torch.arange(positions) == where[:, None]
    layers = [
        torch.where(
            shown,
            torch.multinomial(likely, n * positions, True, generator=generator).view(n, -1),
            torch.multinomial(unlikely, n * positions, True, generator=generator).view(n, -1),
        )
        for _ in range(2)
    ]
    ratio = (likely / unlikely).log()
    posterior = position_posterior(
        [ratio[one][:, None] for one in layers], prior.expand(n, 1, positions)
    )[:, 0]
    code = sum(symbols ** (positions * i) * (one * symbols ** torch.arange(positions)).sum(1)
               for i, one in enumerate(layers))
    for pattern in code.unique():
        among = code == pattern
        if among.sum() > 2000:
            counted = shown[among].double().mean(0)
            torch.testing.assert_close(posterior[among][0], counted, atol=0.04, rtol=0)


def test_layers_of_other_grids_are_resized_and_extremes_stay_finite():
    evidence = [torch.full((2, 1, 4, 4), 500.0), torch.full((2, 1, 2, 2), -500.0)]
    evidence[0][:, :, 1, 2] = 600
    posterior = position_posterior(evidence, torch.ones(2, 1, 4, 4))
    assert posterior.shape == (2, 1, 4, 4)
    torch.testing.assert_close(posterior.sum((1, 2, 3)), torch.ones(2).double())
    assert posterior[0, 0, 1, 2] == 1
    nothing_passes = position_posterior(evidence, torch.zeros(2, 1, 4, 4))
    assert torch.isfinite(nothing_passes).all()


def test_the_prior_is_uniform_for_a_uniform_alpha_and_falls_with_it():
    logits = torch.linspace(-50, 50, 11).view(11, 1, 1, 1).expand(-1, -1, 3, 4)
    prior = capacity_prior(logits)
    assert (prior == prior[:, :, :1, :1]).all()
    assert (prior[:, 0, 0, 0].diff() <= 0).all()
    assert prior[0, 0, 0, 0] > 49
    assert prior[-1, 0, 0, 0] == 0
    assert capacity_prior(torch.zeros(2, 1)).shape == (2, 1)


@torch.no_grad()
def test_the_map_of_a_class_by_hand(net, images, quick_fit):
    """Odds of the chosen layers, as one witness, evidence of a deeper one, capacity, cubed."""
    attr = quick_fit(
        InfoBottleneckAttribution(net, ["stage1", "pool"], head_layers=["stage2"]), [images])
    networks, target = attr.networks, 2
    for parameter in networks.parameters():  # heads and alpha of little training tell little
        parameter.add_(0.1 * torch.randn_like(parameter))
    layers = list({site.layer for site in networks.all_sites})
    z = networks.standardise(capture_only(net, layers, lambda: net(images)))
    logits = networks.alpha_logits(z)
    log_r = networks.output.log_marginal[target].double()

    def log_q(site, parameters):
        evidence = networks.output.evidence(parameters)[..., target].double()
        return evidence[:, None].unflatten(2, z[site].shape[2:]) + log_r

    odds, maps = torch.zeros(32, 1, 12, 12).double(), torch.zeros(32, 1, 12, 12).double()
    for site in networks.sites:
        pair = networks.head_pair(site, z[site], logits[site])
        q, r = log_q(site, sum(pair) / 2).exp(), log_r.exp()
        odds += resize((q / (1 - q)).log() - (r / (1 - r)).log(), (12, 12)) / 2
        maps += sum(resize(log_q(site, one) - log_r, (12, 12)) for one in pair) / 4
    deepest = networks.head_sites[0]
    deeper = resize(log_q(deepest, networks.clean_head(deepest, z[deepest])) - log_r, (12, 12))
    alpha = torch.sigmoid(logits[networks.sites[0]].double())
    prior = 0.5 * (alpha**2 + (1 - alpha) ** 2 - 1) - alpha.log()
    weight = (prior * (odds + deeper).exp()) ** 3
    positive, negative = maps.clamp_min(0), maps.clamp_max(0)
    assert (positive.sum((2, 3)) > 0).sum() > 5
    moved = positive * (0.95 * weight / weight.sum((2, 3), keepdim=True) + 0.05 / 144)
    moved *= positive.sum((2, 3), keepdim=True) / moved.sum((2, 3), keepdim=True).clamp_min(1e-30)
    found = attr.attribute(images, target).sum(1, keepdim=True).double()
    torch.testing.assert_close(found, moved + negative, rtol=1e-3, atol=1e-5)
