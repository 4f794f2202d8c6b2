"""Moments, grids, critics, outputs and the inference network."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from captum_mi.bounds import donsker_varadhan, info_nce
from captum_mi.critics import ConcatenatedCritic, SeparableCritic
from captum_mi.grid import _as_one_image, finest, locals_of, resize
from captum_mi.inference import FixedAlpha, InferenceNetwork
from captum_mi.maps.readout import target_index
from captum_mi.moments import Moments, StreamingMoments
from captum_mi.outputs import BernoulliOutput, CategoricalOutput, GaussianOutput, make_output


def test_streaming_moments_equal_those_of_all_data_at_once():
    features = torch.randn(37, 4, 3, 5) * torch.tensor([1.0, 10, 0.1, 2])[:, None, None] + 1e4
    stream = StreamingMoments()
    for part in features.split(8):
        stream.update(part)
    mean, std = stream.result()
    rows = features.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, rows.mean(1))
    torch.testing.assert_close(std, rows.std(1, correction=0))


def test_dead_channels_are_not_blown_up_and_standardising_is_invertible():
    moments = Moments(3)
    moments.set(torch.tensor([0.0, 5, 0]), torch.tensor([2.0, 1, 0]))
    features = torch.randn(4, 3, 6)
    features[:, 2] = 1e-3
    z = moments.standardise(features)
    assert z[:, 2].abs().max() < 1
    torch.testing.assert_close(moments.restore(z), features)


@pytest.mark.parametrize("make", [SeparableCritic, ConcatenatedCritic])
@pytest.mark.parametrize("hidden", [(), (16,), (16, 8)])
def test_critics_score_pairs_alike_however_they_are_asked(make, hidden):
    critic = make(4, 3, hidden).double()
    x, y = torch.randn(5, 4).double(), torch.randn(6, 3).double()
    scores = critic(x, y)
    assert scores.shape == (5, 6)
    one_by_one = torch.stack([
        torch.stack([critic(x[i : i + 1], y[j : j + 1])[0, 0] for j in range(6)]) for i in range(5)
    ])
    torch.testing.assert_close(scores, one_by_one)
    paired = critic.paired(critic.embed_local(x), critic.embed_global(y[:5]))
    torch.testing.assert_close(paired, scores[:, :5].diagonal())
    expected = scores.flatten().logsumexp(0) - math.log(30)
    torch.testing.assert_close(critic.log_partition(x, y, chunk=7), expected)


def test_a_separable_critic_without_hidden_layers_finds_the_information_of_gaussians():
    generator = torch.manual_seed(0)
    rho, truth = 0.9, -2 * math.log(1 - 0.9**2)  # four coordinates

    def sample(n):
        x, noise = torch.randn(2, n, 4, generator=generator)
        return x, rho * x + math.sqrt(1 - rho**2) * noise

    critic = SeparableCritic(4, 4, hidden=())
    optimizer = torch.optim.Adam(critic.parameters(), 0.02)
    for _ in range(300):
        scores = critic(*sample(256))[:, None]
        optimizer.zero_grad()
        (-info_nce(scores, "local") - info_nce(scores, "global")).backward()
        optimizer.step()
    with torch.no_grad():
        x, y = sample(4096)
        positive = critic.paired(critic.embed_local(x), critic.embed_global(y))
        estimate = donsker_varadhan(positive, critic.log_partition(sample(4096)[0], y))
    assert estimate.item() == pytest.approx(truth, abs=0.15)


def test_resize_keeps_the_total_of_a_density_at_whole_factors():
    maps = torch.randn(2, 1, 6, 6)
    for size in ((12, 12), (24, 18), (3, 2)):
        area = size[0] * size[1] / 36
        torch.testing.assert_close(
            resize(maps, size).sum((2, 3)) / area, maps.sum((2, 3)), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("channels", [1, 8])
def test_channels_of_all_examples_may_be_those_of_one_image(channels):
    maps = torch.randn(3, channels, 2, 5)
    torch.testing.assert_close(_as_one_image(maps, (6, 7)), resize(maps, (6, 7)))


def test_resize_between_grids_with_and_without_positions():
    spread = resize(torch.tensor([[3.0]]), (2, 2))
    assert torch.equal(spread, torch.full((1, 1, 2, 2), 3.0))
    assert torch.equal(resize(torch.arange(4.0).view(1, 1, 2, 2), ()), torch.tensor([[1.5]]))
    with pytest.raises(ValueError, match="same number of position axes"):
        resize(torch.zeros(1, 1, 4), (2, 2))


def test_grids():
    assert finest([(3, 3), (12, 12), ()]) == (12, 12)
    features = torch.randn(2, 5, 3, 4)
    assert torch.equal(locals_of(features)[1, 2 * 4 + 1], features[1, :, 2, 1])
    assert locals_of(torch.randn(2, 5)).shape == (2, 1, 5)


@pytest.mark.parametrize("positions", [(), (7,), (6, 5), (3, 4, 5)])
@pytest.mark.parametrize("kind", ["conv", "mlp"])
def test_inference_network_takes_any_layout_and_starts_nearly_open(positions, kind):
    network = InferenceNetwork([4, 6], len(positions), kind, width=16, hidden=8)
    half = tuple(max(1, size // 2) for size in positions)
    context = [torch.randn(3, 4, *positions), torch.randn(3, 6, *half)]
    logit = network(context, positions)
    assert logit.shape == (3, 1, *positions)
    assert torch.allclose(logit, torch.tensor(-3.0))


def test_fixed_alpha_is_resized_to_each_grid():
    alpha = FixedAlpha(torch.tensor([[0.0, 1.0], [0.5, 0.5]]))
    context = [torch.zeros(3, 4, 2, 2)]
    value = torch.sigmoid(alpha(context, (2, 2)))
    torch.testing.assert_close(value[2, 0], torch.tensor([[0.0, 1.0], [0.5, 0.5]]))
    assert torch.sigmoid(FixedAlpha(torch.tensor(0.25))(context, (4, 4))).shape == (3, 1, 4, 4)


def outputs():
    probabilities = torch.randn(64, 5).softmax(-1)
    return [
        (CategoricalOutput((5,)), torch.randn(64, 5)),
        (CategoricalOutput((2, 3)), torch.randn(64, 2, 3)),
        (CategoricalOutput((5,), probabilities=True), probabilities),
        (BernoulliOutput((4,)), torch.randn(64, 4)),
        (BernoulliOutput(()), torch.randn(64)),
        (BernoulliOutput((1,), probabilities=True), torch.rand(64, 1)),
        (GaussianOutput((3,)), torch.randn(64, 3) @ torch.randn(3, 3) + 5),
    ]


@pytest.mark.parametrize("i", range(7))
def test_laws_of_outputs(i):
    output, raw = outputs()[i]
    output.fit_marginal(raw)
    y = output.encode(raw)
    parameters = torch.randn(64, 6, output.head_size)
    assert y.shape == (64, output.size)
    assert output.critic_input(raw).shape == (64, output.size)
    kl = output.kl(parameters)
    assert kl.shape == (64, 6)
    assert (kl >= 0).all()
    nll = output.negative_log_likelihood(parameters, y[:, None])
    assert nll.shape == (64, 6)
    assert output.marginal_negative_log_likelihood(y).shape == (64,)
    torch.testing.assert_close(output.distortion(raw, raw), torch.zeros(64), atol=1e-5, rtol=0)
    assert output.uninformed(raw) > 0
    if not isinstance(output, GaussianOutput):  # a head of zeros is the marginal
        zeros = torch.zeros(64, output.head_size)
        assert output.evidence(zeros).abs().max() < 1e-6
        torch.testing.assert_close(
            output.negative_log_likelihood(zeros, y), output.marginal_negative_log_likelihood(y)
        )


@pytest.mark.parametrize("i", range(6))
def test_the_expectation_of_the_evidence_over_q_is_the_kl(i):
    output, raw = outputs()[i]
    output.fit_marginal(raw)
    parameters = torch.randn(2, 6, output.head_size)
    evidence = output.evidence(parameters)
    if isinstance(output, CategoricalOutput):
        q = (parameters + output.log_marginal).softmax(-1)
        expectation = (q * evidence).sum(-1)
    else:
        logits = parameters + output.marginal_logits
        off = torch.sigmoid(-logits).log() - torch.sigmoid(-output.marginal_logits).log()
        q = torch.sigmoid(logits)
        expectation = (q * evidence + (1 - q) * off).sum(-1)
    torch.testing.assert_close(output.kl(parameters), expectation, rtol=1e-4, atol=1e-5)
    index = torch.tensor([[0], [output.size - 1]])
    chosen = output.evidence_for(parameters, index)
    torch.testing.assert_close(chosen[0], evidence[0, :, 0])
    torch.testing.assert_close(chosen[1], evidence[1, :, -1])


@pytest.mark.parametrize("scale", [1e-5, 1e-2, 1.0, 15.0])
def test_evidence_of_many_classes_agrees_with_double_precision(scale):
    """To the digits of the largest evidence, also where that is next to nothing."""
    output, twin = CategoricalOutput((1000,)), CategoricalOutput((1000,)).double()
    raw = 2 * torch.randn(64, 1000)
    output.fit_marginal(raw)
    exact = F.log_softmax(output.log_marginal.double(), -1)
    twin.log_marginal.copy_(exact)
    parameters = scale * torch.randn(2, 6, 1000) + 3  # a constant says nothing
    truth = F.log_softmax(parameters.double() + exact, -1) - exact
    largest = float(truth.abs().max())
    assert (output.evidence(parameters) - truth).abs().max() < 1e-6 * (largest + 3)
    assert (twin.evidence(parameters.double()) - truth).abs().max() < 1e-13 * (largest + 3)
    kl = (truth.exp() * exact.exp() * truth).sum(-1)
    torch.testing.assert_close(twin.kl(parameters.double()), kl, rtol=1e-6, atol=1e-13)
    index = torch.tensor([[5], [900]])
    chosen = torch.stack([truth[0, :, 5], truth[1, :, 900]])
    assert (output.evidence_for(parameters, index) - chosen).abs().max() < 1e-6 * (largest + 3)
    y = torch.randn(1000).softmax(-1)
    leaf = parameters.clone().requires_grad_()
    output.negative_log_likelihood(leaf, y).sum().backward()
    torch.testing.assert_close(leaf.grad, (truth + exact).exp().float() - y, rtol=1e-4, atol=1e-6)


def test_evidence_of_extreme_logits_is_finite():
    output = CategoricalOutput((4,))
    parameters = 1e4 * torch.tensor([[[1.0, -1.0, 0.0, 0.5], [1.0, 1.0, 1.0, 1.0]]])
    assert torch.isfinite(output.evidence(parameters)).all()
    assert torch.isfinite(output.kl(parameters)).all()
    assert output.kl(parameters)[0, 0].item() == pytest.approx(math.log(4), abs=1e-3)


def test_evidence_for_several_classes_is_that_of_any_of_them():
    output = CategoricalOutput((3,))
    output.fit_marginal(torch.randn(64, 3))
    parameters = torch.randn(1, 1, 3)
    both = output.evidence_for(parameters, torch.tensor([[0, 2]]))
    q, r = (parameters + output.log_marginal).softmax(-1)[0, 0], output.log_marginal.exp()
    assert both.item() == pytest.approx(math.log((q[0] + q[2]) / (r[0] + r[2])), abs=1e-5)
    everything = output.evidence_for(parameters, torch.tensor([[0, 1, 2]]))
    assert everything.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("output", [CategoricalOutput((5,)), BernoulliOutput((5,))])
@pytest.mark.parametrize("classes", [[1], [0, 3]])
def test_log_odds_ratios_are_those_of_the_event_and_its_opposite(output, classes):
    output.fit_marginal(torch.randn(64, 5))
    parameters, index = 2 * torch.randn(3, 6, 5), torch.tensor(classes).expand(3, -1)
    evidence = output.evidence_for(parameters, index).double()
    label = isinstance(output, BernoulliOutput)
    r = (torch.sigmoid(output.marginal_logits[classes]).prod() if label
         else output.log_marginal[classes].exp().sum()).double()
    q = evidence.exp() * r
    expected = (q / (1 - q)).log() - (r / (1 - r)).log()
    torch.testing.assert_close(
        output.log_odds_ratio(parameters, index), expected.float(), rtol=1e-4, atol=1e-4)
    pure_noise = torch.zeros(3, 6, 5)
    torch.testing.assert_close(
        output.log_odds_ratio(pure_noise, index), torch.zeros(3, 6), rtol=0, atol=1e-5)


@pytest.mark.parametrize("output", [CategoricalOutput((3,)), BernoulliOutput((3,))])
def test_log_odds_ratios_grow_where_evidence_is_level(output):
    sure = torch.tensor([15.0, 20.0, 40.0, 1e4])[None, :, None] * torch.tensor([1.0, -1, -1])
    index = torch.tensor([[0]])
    evidence, ratio = output.evidence_for(sure, index), output.log_odds_ratio(sure, index)
    assert (evidence.diff().abs() < 1e-5).all()
    assert (ratio.diff() > 4).all()
    assert torch.isfinite(ratio).all()
    torch.testing.assert_close(output.log_odds_ratio(-sure, index)[:, :2], -ratio[:, :2])


def test_any_class_at_all_is_no_event():
    everything = torch.tensor([[0, 1, 2]])
    ratio = CategoricalOutput((3,)).log_odds_ratio(torch.randn(1, 4, 3), everything)
    assert torch.equal(ratio, torch.zeros(1, 4))


def test_the_marginal_is_floored_for_classes_that_never_occur():
    output = CategoricalOutput((4,), probabilities=True)
    output.fit_marginal(torch.eye(4)[torch.zeros(100, dtype=torch.long)])
    assert torch.isfinite(output.log_marginal).all()
    assert output.log_marginal[0] > -0.01


def test_gaussian_output_whitens_and_needs_a_downstream_for_classes():
    output = GaussianOutput((3,))
    raw = torch.randn(5000, 3) @ torch.tensor([[2.0, 1, 0], [0, 1, 0], [0, 0, 30]]) + 9
    output.fit_marginal(raw)
    y = output.encode(raw)
    torch.testing.assert_close(y.T @ y / 5000, torch.eye(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(output.decode(y), raw, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="pass downstream="):
        output.evidence(torch.zeros(1, 1, 6))


def test_directions_that_do_not_vary_tell_nothing():
    """Dead units, and more units than examples: no head can do better than the marginal there."""
    varying = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    dead = torch.cat([varying, torch.ones(500, 5)], 1) @ torch.linalg.qr(torch.randn(8, 8))[0]
    few = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    for raw, used in ((dead, 3), (few, 5)):
        output = GaussianOutput(raw.shape[1:])
        output.fit_marginal(raw)
        y = output.encode(raw)
        torch.testing.assert_close(y.square().sum(1).mean(), torch.tensor(float(used)))
        torch.testing.assert_close(output.decode(y), raw, rtol=1e-4, atol=1e-4)
        sure = torch.full((1, 1, 2 * raw.shape[1]), -20.0)  # of the mean and the variance
        sure[..., : raw.shape[1]] = 0
        per_direction = float(output.kl(sure)) / used
        assert 3 < per_direction < 4
        zero = torch.zeros_like(sure)
        torch.testing.assert_close(
            output.negative_log_likelihood(zero, y[:, None])[:, 0],
            output.marginal_negative_log_likelihood(y))
        torch.testing.assert_close(output.uninformed(raw), torch.tensor(0.5))


def test_labels_are_indices_or_probabilities():
    output, raw = CategoricalOutput((5,)), torch.randn(2, 5)
    expected = torch.nn.functional.cross_entropy(raw, torch.tensor([0, 2]), reduction="none")
    for labels in (torch.tensor([0, 2]), torch.tensor([0, 2], dtype=torch.uint8),
                   torch.eye(5)[[0, 2]]):
        torch.testing.assert_close(output.label_loss(raw, labels), expected)
    with pytest.raises(ValueError, match="expected class indices as integers"):
        output.label_loss(raw, torch.tensor([0.0, 2.0]))


def test_an_alpha_by_hand_is_averaged_itself():
    alpha = torch.full((12, 12), 0.1)
    alpha[::2, ::2] = 1
    fixed = FixedAlpha(alpha)
    logit = fixed([torch.zeros(3, 8, 6, 6)], (6, 6))
    torch.testing.assert_close(torch.sigmoid(logit), torch.full((3, 1, 6, 6), 0.325))
    assert torch.equal(fixed([torch.zeros(3, 8, 12, 12)], (12, 12))[0, 0], fixed.logit)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (torch.tensor([[2.0, -1.0]]), r"values in \[0, 1\]; got -1 to 2"),
        (torch.tensor([[0.9, 0.9]]), "rows that sum to 1"),
    ],
)
def test_probabilities_are_checked(raw, message):
    with pytest.raises(ValueError, match=message):
        make_output("probabilities", (2,)).encode(raw)


def test_target_index_follows_captum():
    assert target_index(None, 2, (3,)) is None
    assert target_index(1, 2, (3,)).tolist() == [[1], [1]]
    assert target_index([0, 2], 2, (3,)).tolist() == [[0], [2]]
    assert target_index(torch.tensor([0, 2]), 2, (3,)).tolist() == [[0], [2]]
    assert target_index((1, 2), 2, (2, 3)).tolist() == [[5], [5]]
    assert target_index([(0, 1), (1, 0)], 2, (2, 3)).tolist() == [[1], [3]]
    assert target_index(1, 2, (2, 3)).tolist() == [[3, 4, 5], [3, 4, 5]]
    with pytest.raises(IndexError, match="out of bounds"):
        target_index(3, 2, (3,))
    with pytest.raises(RuntimeError, match="out of bounds"):
        target_index(torch.tensor([0, 7]), 2, (3,))
    with pytest.raises(AssertionError, match="does not match output"):
        target_index([0], 2, (3,))


@pytest.mark.parametrize(
    ("kind", "index"),
    [("categorical", [[1]]), ("categorical", [[0, 3]]), ("bernoulli", [[2]]),
     ("bernoulli", [[0, 1]]), ("probabilities", [[1]])],
)
def test_probabilities_of_events_by_a_slow_twin(kind, index):
    output = make_output(kind, (4,)).double()
    raw = 2 * torch.randn(50, 4).double()
    raw = raw.softmax(1) if kind == "probabilities" else raw
    of_each = raw.sigmoid() if kind == "bernoulli" else raw
    of_each = raw.softmax(1) if kind == "categorical" else of_each
    chosen = of_each[:, index[0]]  # any of these classes, all of these labels
    expected = chosen.prod(1) if kind == "bernoulli" else chosen.sum(1)
    got = output.log_probability(raw, torch.tensor(index).expand(50, -1))
    torch.testing.assert_close(got, expected.log())
    logit = output.logit(raw, torch.tensor(index).expand(50, -1))
    others = torch.log1p(-expected) if kind == "bernoulli" else of_each.log().mean(1)
    torch.testing.assert_close(logit, expected.log() - others)


@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
def test_a_logit_keeps_its_slope_where_a_class_is_as_good_as_certain(kind):
    output = make_output(kind, (2,) if kind == "categorical" else (1,))
    raw = torch.tensor([[60.0, 0.0]] if kind == "categorical" else [[60.0]]).requires_grad_()
    logit = output.logit(raw, torch.tensor([[0]]))
    logit.sum().backward()
    half = 0.5 if kind == "categorical" else 1.0
    torch.testing.assert_close(logit, torch.tensor([60.0 * half]))
    torch.testing.assert_close(raw.grad[:, 0], torch.tensor([half]))


@pytest.mark.parametrize("axes", [1, 2])
def test_edges_are_not_told_from_other_positions(axes):
    """Of features that are the same everywhere, alpha is the same everywhere."""
    network = InferenceNetwork([4, 6], axes)
    torch.nn.init.normal_(network.combine[-1].weight)
    grid = (7,) * axes
    features = [torch.randn(2, channels, *[1] * axes).expand(2, channels, *grid)
                for channels in (4, 6)]
    logits = network(features, grid)
    middle = logits.flatten(1)[:, 7**axes // 2].view(2, *[1] * (axes + 1))
    torch.testing.assert_close(logits, middle.expand_as(logits))
