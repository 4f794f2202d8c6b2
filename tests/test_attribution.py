"""What a user of the two classes relies on: shapes, semantics, determinism."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn

from captum_mi import Batch, InfoBottleneckAttribution, LayerInfoBottleneckAttribution
from captum_mi.bottleneck import inject_noise
from captum_mi.maps.alpha_refinement import refine_alpha

INFORMATION = ("sufficient", "general", "redundant")


def assert_maps_equal(a, b, tolerance=1e-5):
    assert (a - b).abs().max() <= tolerance * max(a.abs().max(), b.abs().max())


def test_maps_have_the_inputs_shape_and_type(fitted, images):
    result = fitted.attribute(images, target=1)
    assert result.shape == images.shape
    assert result.dtype == images.dtype
    assert result.is_contiguous()
    assert not result.requires_grad
    (only,) = fitted.attribute((images,), target=1)
    assert torch.equal(only, result)


@pytest.mark.parametrize("estimator", ["variational", "infomax"])
@pytest.mark.parametrize("target", [None, 2])
def test_redundant_is_general_minus_sufficient(fitted, images, estimator, target):
    maps = {
        kind: fitted.attribute(images, target, information=kind, estimator=estimator)
        for kind in INFORMATION
    }
    torch.testing.assert_close(maps["redundant"], maps["general"] - maps["sufficient"])


def test_the_expectation_is_never_negative_and_evidence_averages_to_it(fitted, images):
    for kind in ("sufficient", "general"):
        assert (fitted.attribute(images, information=kind) >= 0).all()
    layered = LayerInfoBottleneckAttribution(fitted.model, ["stage1", "stage2"])
    layered._fit = fitted._fit
    evidence = layered.evidence(images)
    expectation = layered.attribute(images)
    marginal = fitted.networks.output.log_marginal.view(1, -1, 1, 1)
    for per_class, mean in zip(evidence, expectation):
        q = (per_class + marginal).exp()
        torch.testing.assert_close((q * per_class).sum(1, keepdim=True), mean)
        torch.testing.assert_close(q.sum(1), torch.ones_like(q[:, 0]))


def test_the_sum_over_an_example_is_the_total_over_positions(net, images, quick_fit):
    attr = quick_fit(InfoBottleneckAttribution(net, "stage2"), [images])
    total = attr.attribute(images, target=3).sum((1, 2, 3))
    per_position = attr.evidence(images)[:, 3].sum((1, 2))
    torch.testing.assert_close(total, per_position)


def test_evidence_of_all_classes_is_that_of_each_target(fitted, images):
    layered = LayerInfoBottleneckAttribution(fitted.model, ["stage1", "stage2"])
    layered._fit = fitted._fit
    for layer, every in enumerate(layered.evidence(images)):
        for target in range(5):
            one = layered.attribute(images, target=target, weighting="none")[layer]
            torch.testing.assert_close(every[:, target : target + 1], one)
    assert fitted.evidence(images).shape == (32, 5, 12, 12)


@pytest.mark.parametrize("estimator", ["variational", "infomax"])
@pytest.mark.parametrize("information", INFORMATION)
@pytest.mark.parametrize("alpha_steps", [0, 2])
def test_a_map_depends_on_its_image_alone(fitted, images, estimator, information, alpha_steps):
    options = {
        "information": information, "estimator": estimator, "alpha_steps": alpha_steps
    }
    targets = torch.arange(32) % 5
    batch = fitted.attribute(images, targets, **options)
    # A difference of maps inherits their rounding: its scale is theirs.
    scale = fitted.attribute(images, targets, **{**options, "information": "general"}).abs().max()
    for i in (0, 17):
        alone = fitted.attribute(images[i : i + 1], targets[i : i + 1], **options)
        assert (alone[0] - batch[i]).abs().max() <= 1e-5 * scale
    assert torch.equal(fitted.attribute(images, targets, **options), batch)
    with torch.no_grad():
        assert torch.equal(fitted.attribute(images, targets, **options), batch)
    for size in (1, 5, 32, 100):
        parts = fitted.attribute(images, targets, internal_batch_size=size, **options)
        assert (parts - batch).abs().max() <= 1e-5 * scale


def test_every_target_form(fitted, images):
    two = images[:2]
    reference = fitted.attribute(two, target=3)
    for target in ([3, 3], torch.tensor([3, 3]), torch.tensor(3), (3,), [(3,), (3,)]):
        assert torch.equal(fitted.attribute(two, target=target), reference)


@pytest.mark.parametrize("estimator", ["variational", "infomax"])
@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (5, IndexError, "out of bounds"),
        ([0], AssertionError, "does not match output"),
        (torch.zeros(2, 2, dtype=torch.long), AssertionError, "not valid"),
        ((0, 0), AssertionError, "Cannot choose target column"),
    ],
)
def test_bad_targets_raise_what_captum_raises(fitted, images, estimator, target, error, message):
    with pytest.raises(error, match=message):
        fitted.attribute(images, target=target, estimator=estimator)


def test_infomax_does_not_depend_on_the_target(fitted, images):
    a, b = (fitted.attribute(images, t, estimator="infomax") for t in (0, None))
    assert torch.equal(a, b)


@pytest.mark.parametrize("information", ["sufficient", "general"])
def test_the_posterior_moves_evidence_and_keeps_signs_and_the_positive_total(
    net, images, quick_fit, information
):
    attr = quick_fit(LayerInfoBottleneckAttribution(net, "stage2"), [images], steps=30)
    target = net(images).argmax(1)
    plain, moved = (
        attr.attribute(images, target, information=information, weighting=weighting)
        for weighting in ("none", "posterior")
    )
    positive = plain > 0
    assert positive.any()
    assert not torch.allclose(plain[positive], moved[positive], rtol=1e-2)
    torch.testing.assert_close(moved[~positive], plain[~positive])
    torch.testing.assert_close(
        moved.clamp_min(0).sum((1, 2, 3)), plain.clamp_min(0).sum((1, 2, 3))
    )


def test_only_the_evidence_for_a_class_is_spread_by_the_posterior(fitted, images):
    expected = fitted.attribute(images, None, weighting="none")
    assert torch.equal(fitted.attribute(images), expected)
    for options in ({}, {"target": 0, "estimator": "infomax"}):
        with pytest.raises(ValueError, match="needs the variational evidence for a class"):
            fitted.attribute(images, weighting="posterior", **options)


def test_a_deeper_head_moves_the_evidence_and_does_not_change_it(net, images, quick_fit):
    attr = quick_fit(LayerInfoBottleneckAttribution(net, "stage1"), [images], steps=30)
    assert [site.layer for site in attr.networks.head_sites] == ["relu"]
    target = net(images).argmax(1)
    before = [attr.attribute(images, target, weighting=w) for w in ("none", "posterior")]
    attr.networks.clean_heads[1][-1].weight.data.normal_()
    after = [attr.attribute(images, target, weighting=w) for w in ("none", "posterior")]
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1], rtol=1e-2)


def test_head_layers_can_be_chosen(net, images, quick_fit):
    attr = quick_fit(InfoBottleneckAttribution(net, "stage1", head_layers=[]), [images])
    assert attr.networks.head_sites == ()
    attr = quick_fit(InfoBottleneckAttribution(net, "stage1", head_layers=net.stage2), [images])
    assert [site.layer for site in attr.networks.head_sites] == ["stage2"]
    assert attr.attribute(images, 0).shape == images.shape
    with pytest.raises(ValueError, match="which layer names already"):
        InfoBottleneckAttribution(net, "stage1", head_layers="stage1")


def test_a_fit_names_the_layers_it_has_found(net, images, quick_fit, tmp_path):
    attr = quick_fit(InfoBottleneckAttribution(net), [images])
    named = (attr.layers, attr.head_layers, attr.context_layers)
    assert named[:2] == (["stage1"], ["relu"])
    assert set(named[0] + named[1]) <= set(named[2])
    before = attr.attribute(images, 0)
    attr.save(tmp_path / "fit.safetensors")
    loaded = InfoBottleneckAttribution.load(tmp_path / "fit.safetensors", net)
    assert (loaded.layers, loaded.head_layers, loaded.context_layers) == named
    quick_fit(attr, [images])
    assert (attr.layers, attr.head_layers, attr.context_layers) == named
    assert torch.equal(attr.attribute(images, 0), before)


def test_bits_are_nats_over_log_2(fitted, images):
    nats, bits = (fitted.attribute(images, 0, unit=unit) for unit in ("nats", "bits"))
    torch.testing.assert_close(bits * math.log(2), nats)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_alpha_by_hand(net, images, quick_fit, alpha):
    attr = quick_fit(InfoBottleneckAttribution(net, "stage2", alpha=alpha), [images])
    sufficient = attr.attribute(images, target=0)
    general = attr.attribute(images, target=0, information="general")
    if alpha == 0:
        torch.testing.assert_close(sufficient, general)
    if alpha == 1:
        assert torch.equal(sufficient, torch.zeros_like(sufficient))
    figures = attr.information([images], progress=False)["stage2"]
    assert math.isfinite(figures["capacity"].mean)


def test_alpha_as_a_map_silences_where_it_is_1(net, images, quick_fit):
    alpha = torch.zeros(6, 6)
    alpha[:, 3:] = 1
    attr = quick_fit(LayerInfoBottleneckAttribution(net, "stage2", alpha=alpha), [images])
    sufficient = attr.attribute(images)
    assert (sufficient[..., 3:] == 0).all()
    assert (sufficient[..., :3] > 0).all()


def test_literal_noise_mixes_into_raw_features(net, images, quick_fit):
    attr = quick_fit(InfoBottleneckAttribution(net, "stage2", noise="standard"), [images])
    moments = attr.networks.moments_of(attr.networks.sites[0])
    assert torch.equal(moments.mean, torch.zeros(16))
    assert torch.equal(moments.std, torch.ones(16))
    assert attr.attribute(images, target=0).shape == images.shape


@pytest.mark.parametrize("critic", ["separable", "concatenated"])
@pytest.mark.parametrize("inference", ["conv", "mlp"])
@pytest.mark.parametrize("hidden", [(), (16,)])
def test_every_kind_of_network(net, images, quick_fit, critic, inference, hidden):
    attr = InfoBottleneckAttribution(
        net, ["stage1", "stage2"], critic=critic, inference=inference, head_hidden=hidden,
        critic_hidden=hidden,
    )
    quick_fit(attr, [images])
    for estimator in ("variational", "infomax"):
        result = attr.attribute(images, estimator=estimator)
        assert torch.isfinite(result).all()


class Signal(nn.Module):
    """(N, 2, L) -> logits; features (N, 4, L) and (N, 6)."""

    def __init__(self, out: int = 3, squeeze: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, padding=1)
        self.hidden = nn.Linear(4, 6)
        self.fc = nn.Linear(6, out)
        self.squeeze = squeeze

    def forward(self, x):
        out = self.fc(self.hidden(torch.relu(self.conv(x)).mean(2)))
        return out[:, 0] if self.squeeze else out


def test_sequences_and_layers_without_positions(quick_fit):
    model, signals = Signal(), torch.randn(24, 2, 10)
    attr = quick_fit(InfoBottleneckAttribution(model, "conv"), [signals])
    assert attr.attribute(signals, target=0).shape == signals.shape
    layered = quick_fit(LayerInfoBottleneckAttribution(model, ["conv", "hidden"]), [signals])
    conv, hidden = layered.attribute(signals, target=0)
    assert conv.shape == (24, 1, 10)
    assert hidden.shape == (24, 1)


@pytest.mark.parametrize("squeeze", [False, True])
def test_a_single_logit_is_bernoulli(quick_fit, squeeze):
    model, signals = Signal(1, squeeze), torch.randn(24, 2, 10)
    attr = quick_fit(InfoBottleneckAttribution(model, "conv"), [signals])
    assert (attr.attribute(signals) >= 0).all()
    assert attr.evidence(signals).shape == (24, 1, 10)
    if not squeeze:
        assert attr.attribute(signals, target=0).shape == signals.shape


def test_labels_and_probabilities(quick_fit):
    model, signals = Signal(4), torch.randn(24, 2, 10)
    labels = quick_fit(InfoBottleneckAttribution(model, "conv", output="bernoulli"), [signals])
    assert labels.attribute(signals, target=3).shape == signals.shape
    soft = nn.Sequential(model, nn.Softmax(-1))
    attr = quick_fit(InfoBottleneckAttribution(soft, "0.conv", output="probabilities"), [signals])
    assert torch.isfinite(attr.attribute(signals, target=3)).all()


def test_a_global_layer_that_is_the_output_is_the_output(net, images, quick_fit):
    attr = quick_fit(InfoBottleneckAttribution(net, "stage2", global_layer="fc"), [images])
    plain = quick_fit(InfoBottleneckAttribution(net, "stage2"), [images])
    assert torch.equal(attr.attribute(images, 0), plain.attribute(images, 0))


def test_an_embedding_with_and_without_a_downstream(net, images, quick_fit):
    attr = quick_fit(InfoBottleneckAttribution(net, "stage2", global_layer="dropout"), [images])
    assert (attr.attribute(images) >= 0).all()
    assert torch.isfinite(attr.attribute(images, estimator="infomax")).all()
    with pytest.raises(ValueError, match="pass downstream="):
        attr.attribute(images, target=0)
    classes = quick_fit(
        InfoBottleneckAttribution(net, "stage2", global_layer="dropout", downstream=net.fc),
        [images],
    )
    assert classes.evidence(images).shape == (32, 5, 6, 6)
    with pytest.raises(IndexError):
        classes.attribute(images, target=5)


def test_labels_that_are_predicted_beside_an_embedding(net, images, quick_fit, tmp_path):
    """The second pass is held to each label by itself."""
    def kappa(**options):
        attr = InfoBottleneckAttribution(net, "stage2", global_layer="dropout", **options)
        quick_fit(attr, [images])
        assert torch.isfinite(attr.attribute(images, alpha_steps=2)).all()
        attr.save(tmp_path / "fit.safetensors")
        again = InfoBottleneckAttribution.load(tmp_path / "fit.safetensors", net)
        assert torch.equal(again.attribute(images, alpha_steps=2),
                           attr.attribute(images, alpha_steps=2))
        return attr.history.kappa

    with torch.no_grad():
        net.fc.weight.mul_(100)
        p = net(images).sigmoid()
    r = (p.sum(0) + 0.25) / (len(p) + 0.5)  # half an example of a prior
    by_hand = (p * (p / r).log() + (1 - p) * ((1 - p) / (1 - r)).log()).sum(1).mean()
    assert kappa(prediction="bernoulli") == pytest.approx(float(by_hand) / 4, rel=1e-3)
    assert kappa() != pytest.approx(float(by_hand) / 4, rel=1e-2)


@pytest.mark.parametrize("options", [{}, {"global_layer": "dropout", "downstream": len}])
def test_a_prediction_is_for_a_global_layer(net, options):
    with pytest.raises(ValueError, match="prediction='bernoulli' is for a global layer without"):
        InfoBottleneckAttribution(net, "stage2", prediction="bernoulli", **options)


class Distances(nn.Module):
    """An encoder whose classes are prototypes, given anew with every call."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x, prototypes):
        return -torch.cdist(self.encoder(x), prototypes[0])


def test_a_downstream_function_with_forward_arguments(images, net, quick_fit):
    model = Distances(net)

    def downstream(y, prototypes):
        return -torch.cdist(y, prototypes[0])

    episode = [torch.randn(4, 5)]  # in a list: Captum would repeat a tensor along the batch
    attr = InfoBottleneckAttribution(
        model, "encoder.stage2", global_layer="encoder", downstream=downstream, marginal="uniform"
    )
    quick_fit(attr, [images], additional_forward_args=(episode,))
    result = attr.attribute(images, target=3, additional_forward_args=(episode,))
    assert result.shape == images.shape
    other = [torch.randn(7, 5)]
    assert attr.evidence(images, additional_forward_args=(other,)).shape == (32, 7, 6, 6)


def test_a_downstream_function_whose_arguments_are_tensors(images, net, quick_fit):
    """What all examples share is not repeated for their positions."""
    prototypes = torch.randn(4, 5)
    model = Distances(net)
    attr = InfoBottleneckAttribution(
        model, "encoder.stage2", global_layer="encoder", marginal="uniform",
        downstream=lambda y, prototypes: -torch.cdist(y, prototypes[0]))
    quick_fit(attr, [images], additional_forward_args=(prototypes[None],))
    expected = attr.evidence(images, additional_forward_args=([prototypes],))
    found = attr.evidence(images, additional_forward_args=(prototypes[None],))
    torch.testing.assert_close(found, expected)
    attr.downstream = lambda y, prototypes: -torch.cdist(y, prototypes)
    with pytest.raises(ValueError, match="a tensor of 4 rows is taken to have one for each of 4"):
        attr.attribute(images[:4], 1, additional_forward_args=prototypes)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.table = nn.Linear(6, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, image, table, scale=1.0):
        return self.fc(torch.relu(self.conv(image)).mean((2, 3)) + self.table(table)) * scale


def test_several_inputs_and_forward_arguments(quick_fit):
    model, image, table = TwoInputs(), torch.randn(16, 3, 8, 8), torch.randn(16, 6)
    scale = torch.rand(16, 1)
    attr = quick_fit(
        InfoBottleneckAttribution(model, "conv"), [((image, table), torch.zeros(16))],
        additional_forward_args=2.0,
    )
    first, second = attr.attribute((image, table), target=1, additional_forward_args=scale)
    assert first.shape == image.shape
    assert torch.equal(second, torch.zeros_like(table))
    parts, _ = attr.attribute(
        (image, table), target=1, additional_forward_args=scale, internal_batch_size=3
    )
    assert_maps_equal(parts, first)


def test_prepare_batch(net, images, quick_fit):
    rows = [{"pixels": images, "label": torch.zeros(32, dtype=torch.long)}]
    for prepare in (
        lambda row: row["pixels"],
        lambda row: (row["pixels"], row["label"]),
        lambda row: Batch((row["pixels"],), row["label"]),
    ):
        attr = InfoBottleneckAttribution(net, "stage2")
        assert quick_fit(attr, rows, prepare_batch=prepare).history.distortion


class Repeats(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(self.conv(torch.tanh(self.conv(x))).mean((2, 3)))


def test_on_repeat(images, quick_fit):
    model = Repeats()
    with pytest.raises(RuntimeError, match="runs more than once.*on_repeat='first'"):
        quick_fit(InfoBottleneckAttribution(model, "conv"), [images])
    for which in ("first", "last"):
        attr = quick_fit(
            InfoBottleneckAttribution(model, "conv", on_repeat=which), [images]
        )
        with torch.no_grad():
            expected = model.conv(images)
            if which == "last":
                expected = model.conv(torch.tanh(expected))
        moments = attr.networks.moments_of(attr.networks.sites[0])
        torch.testing.assert_close(moments.mean, expected.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        assert attr.attribute(images, target=0, refine_steps=1).shape == images.shape


def test_information_of_a_dataset(fitted, images):
    figures = fitted.information([images[:20], images[20:]], progress=False)
    assert list(figures) == ["stage1", "stage2"]
    for layer in figures.values():
        assert layer["redundant"].mean == pytest.approx(
            layer["general"].mean - layer["sufficient"].mean, abs=1e-5
        )
        assert layer["capacity"].mean > 0
        assert all(estimate.standard_error >= 0 for estimate in layer.values())
    again = fitted.information([images[:20], images[20:]], progress=False)
    assert again == figures
    general = fitted.attribute(images, information="general")
    layered = LayerInfoBottleneckAttribution(fitted.model, ["stage1", "stage2"])
    layered._fit = fitted._fit
    general = layered.attribute(images, information="general")
    for layer, maps in zip(figures.values(), general):
        assert layer["general"].mean == pytest.approx(maps.mean().item(), rel=1e-4)


def test_refinement_lowers_the_objective_of_each_example(fitted, images):
    """Distortion plus information and capacity of x', of one draw of noise, as in the fit."""
    networks, beta2 = fitted.networks, fitted._fit.beta2
    with fitted._reading():
        passes = fitted._reading_passes()
        first = passes.first((images,), (), networks.noised_sites)
        z = networks.standardise(first.layers)
        noise = networks.shared_noise(z)

        def objective(alpha_map):
            logits = networks.spread(alpha_map, z)
            second = passes.second((images,), (), networks.injections(logits, noise))
            terms = []
            for site in networks.sites:
                noised = inject_noise(z[site], logits[site], noise[site])
                size = networks.capacity(z, logits)[site].flatten(1).mean(1)
                parameters = networks.noised_head(site, noised, logits[site])
                terms.append(networks.output.kl(parameters).mean(1) + size)
            return networks.output.distortion(first.prediction, second.prediction) + (
                beta2 * torch.stack(terms).mean(0))

        inferred = networks.alpha_map(z)
        refined = refine_alpha(passes, networks, (images,), (), first, z, beta2, 20)
        before, after = objective(inferred), objective(refined)
    assert (after <= before + 1e-5).all()
    assert (after < before).float().mean() > 0.9


def test_float64_models_stay_in_float64(net, images, quick_fit):
    attr = quick_fit(InfoBottleneckAttribution(net.double(), "stage2"), [images.double()])
    assert attr.attribute(images.double(), target=0).dtype == torch.float64
    assert next(attr.networks.parameters()).dtype == torch.float64


def test_names(fitted):
    assert InfoBottleneckAttribution.get_name() == "Info Bottleneck Attribution"
    assert fitted.has_convergence_delta() is False
    with pytest.raises(NotImplementedError):
        fitted.attribute_future()


def test_a_compiled_model_is_run_eagerly(net, images, quick_fit):
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        compiled(images)  # warmed: the graph would hide hooks
    attr = quick_fit(InfoBottleneckAttribution(compiled, "_orig_mod.stage2"), [images])
    plain = quick_fit(InfoBottleneckAttribution(net, "stage2"), [images])
    torch.testing.assert_close(attr.attribute(images, 0), plain.attribute(images, 0))


@pytest.mark.parametrize(("name", "expected", "head"), [
    ("resnet18", ["layer2", "layer3"], ["layer4"]),
    ("mobilenet_v3_small", ["features.3", "features.8"], ["features"]),
    ("convnext_tiny", ["features.3", "features.5"], ["features"]),
])
def test_default_layers_are_the_two_stages_before_the_deepest(
    quick_fit, tmp_path, name, expected, head
):
    model = getattr(torchvision.models, name)(num_classes=3)
    images = torch.randn(4, 3, 96, 96)
    attr = quick_fit(InfoBottleneckAttribution(model), [images], steps=1)
    assert attr.layers == expected
    assert [site.layer for site in attr.networks.head_sites] == head
    assert attr.layer == [model.get_submodule(layer) for layer in expected]
    attr.save(tmp_path / "fit.safetensors")
    again = InfoBottleneckAttribution.load(tmp_path / "fit.safetensors", model)
    assert torch.equal(again.attribute(images, target=1), attr.attribute(images, target=1))


def test_default_layers_of_a_shallow_network_and_of_one_without_positions(net, images, quick_fit):
    assert quick_fit(InfoBottleneckAttribution(net), [images]).layers == ["stage1"]
    rows = torch.randn(8, 4)
    mlp = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"found no stage with positions .*\(8, 4\)"):
        quick_fit(InfoBottleneckAttribution(mlp), [rows])


def test_what_is_printed_is_short(net, images, quick_fit):
    attr = InfoBottleneckAttribution(net)
    assert repr(attr) == "InfoBottleneckAttribution(SmallNet: layers that fit finds; not fitted)"
    history = quick_fit(attr, [images]).history
    assert repr(attr).endswith("fitted)")
    assert repr(history).startswith(f"History({len(history)} steps in ")
    general = attr.information([images], progress=False)[attr.layers[0]]["general"]
    assert repr(general) == f"{general.mean:.4g} ± {general.standard_error:.2g}"


def test_one_number_per_example_is_one_logit(net, images, quick_fit):
    """``(N,)``, as of ``.squeeze(1)``, has the class 0 that ``(N, 1)`` has."""
    maps = []
    for end in (torch.nn.Identity(), torch.nn.Flatten(0)):
        torch.manual_seed(0)
        model = torch.nn.Sequential(net, torch.nn.Linear(5, 1), end).eval()
        attr = quick_fit(InfoBottleneckAttribution(model, "0.stage2"), [images], steps=4)
        maps.append(attr.attribute(images, target=0))
        assert torch.equal(attr.attribute(images, target=[0] * 32), maps[-1])
        with pytest.raises(IndexError):
            attr.attribute(images, target=1)
    assert torch.equal(*maps)


def test_an_alpha_set_by_hand_is_not_refined(net, images, quick_fit):
    attr = quick_fit(InfoBottleneckAttribution(net, "stage1", alpha=0.5), [images])
    with pytest.raises(ValueError, match="this one was set by hand"):
        attr.attribute(images, 1, alpha_steps=2)
