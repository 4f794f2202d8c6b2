"""Wrong input gets an error that says what was received and what to do."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

from captum_mi import InfoBottleneckAttribution, LayerInfoBottleneckAttribution
from captum_mi.model.batches import Batch
from captum_mi.model.weights import _as_stored


def test_attribute_before_fit(net, images):
    attr = InfoBottleneckAttribution(net, "stage2")
    with pytest.raises(RuntimeError, match=r"not fitted yet: call \.fit\(loader\).*\.load\("):
        attr.attribute(images, target=0)
    with pytest.raises(RuntimeError, match="not fitted yet"):
        attr.save("nowhere.safetensors")


def test_unknown_layer(net):
    with pytest.raises(ValueError, match="layer 'stage3' not found in SmallNet; did you mean 'st"):
        InfoBottleneckAttribution(net, "stage3")
    with pytest.raises(ValueError, match="not a module of this SmallNet"):
        InfoBottleneckAttribution(net, nn.ReLU())
    with pytest.raises(ValueError, match="children are .*'stage1'"):
        InfoBottleneckAttribution(net, "xyz")
    with pytest.raises(ValueError, match="empty list"):
        InfoBottleneckAttribution(net, [])
    with pytest.raises(ValueError, match="twice"):
        InfoBottleneckAttribution(net, ["fc", net.fc])
    with pytest.raises(TypeError, match="a module or a dotted name; got int"):
        InfoBottleneckAttribution(net, 3)
    with pytest.raises(TypeError, match="must be a torch.nn.Module.*function"):
        InfoBottleneckAttribution(lambda x: x, "fc")


class Awkward(nn.Module):
    def __init__(self, result="dict"):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.unused = nn.Conv2d(3, 4, 1)
        self.named = Named(result)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        self.named(x)
        return self.fc(self.conv(x).mean((2, 3)))


class Named(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, x):
        return {"dict": {"features": x}, "list": [x], "none": None, "mixed": (x, 1)}[self.result]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("dict", r"layer 'named' returned a dict with keys \['features'\]; expected a tensor"),
        ("list", r"returned a list of \['Tensor'\]"),
        ("none", "returned a NoneType"),
        ("mixed", r"returned a tuple of \['Tensor', 'int'\]"),
    ],
)
def test_a_layer_that_returns_no_tensor(images, quick_fit, result, message):
    with pytest.raises(TypeError, match=message):
        quick_fit(InfoBottleneckAttribution(Awkward(result), "named"), [images])


def test_a_layer_that_never_runs(images, quick_fit):
    with pytest.raises(RuntimeError, match="layer 'unused' did not run"):
        quick_fit(InfoBottleneckAttribution(Awkward(), "unused"), [images])


def test_no_positions(net, images, quick_fit):
    attr = InfoBottleneckAttribution(net, "dropout")
    with pytest.raises(ValueError, match=r"no positions.*LayerInfoBottleneckAttribution"):
        quick_fit(attr, [images])


@pytest.mark.parametrize("loader", [[], torch.utils.data.DataLoader([], batch_size=2)])
def test_empty_loader(net, quick_fit, loader):
    with pytest.raises(ValueError, match="loader is empty"):
        quick_fit(InfoBottleneckAttribution(net, "stage2"), loader)


def test_a_loader_that_can_be_walked_only_once(net, images, quick_fit):
    with pytest.raises(TypeError, match="a generator can be walked only once"):
        quick_fit(InfoBottleneckAttribution(net, "stage2"), (x for x in [images]))


@pytest.mark.parametrize("kind", ["Tensor", "TensorDataset"])
def test_examples_in_place_of_batches(net, images, quick_fit, kind):
    examples = images if kind == "Tensor" else torch.utils.data.TensorDataset(images)
    with pytest.raises(TypeError, match=f"got a {kind}, which yields single examples.*DataLoader"):
        quick_fit(InfoBottleneckAttribution(net, "stage2"), examples)


@pytest.mark.parametrize("item", ["text", {"x": 1}, 3, ["a", "b", "c"]])
def test_what_a_loader_must_not_yield(net, quick_fit, item):
    with pytest.raises(TypeError, match="prepare_batch="):
        quick_fit(InfoBottleneckAttribution(net, "stage2"), [item])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_inputs(net, images, fitted, quick_fit, bad):
    images[3, 0, 0, 0] = bad
    with pytest.raises(ValueError, match="input 0 holds NaN or Inf"):
        quick_fit(InfoBottleneckAttribution(net, "stage2"), [images])
    with pytest.raises(ValueError, match="input 0 holds NaN or Inf"):
        fitted.attribute(images, target=0)


def test_nan_in_features(net, images, fitted, quick_fit):
    net.stage2[0].bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="layer 'stage2' holds NaN or Inf"):
        quick_fit(InfoBottleneckAttribution(net, "stage2", context_layers="stage2"), [images])
    with (
        pytest.warns(UserWarning, match="weights have changed"),
        pytest.raises(ValueError, match="layer 'stage2' returned NaN or Inf"),
    ):
        fitted.attribute(images, target=0)


def test_another_channel_count(fitted):
    with pytest.raises(ValueError, match=r"input 0 has 1 channels .*; the fit saw 3"):
        fitted.attribute(torch.randn(2, 1, 12, 12), target=0)
    with pytest.raises(ValueError, match="the fit saw inputs of 4 axes"):
        fitted.attribute(torch.randn(3, 12, 12), target=0)
    with pytest.raises(ValueError, match="the fit saw 3"):
        fitted.information([torch.randn(2, 1, 12, 12)], progress=False)
    with pytest.raises(ValueError, match="got 2 inputs; the fit saw 1"):
        fitted.attribute((torch.randn(2, 3, 12, 12),) * 2, target=0)
    with pytest.raises(ValueError, match="is empty"):
        fitted.attribute(torch.randn(0, 3, 12, 12), target=0)


def test_another_size_is_welcome(fitted):
    assert fitted.attribute(torch.randn(2, 3, 20, 16), target=0).shape == (2, 3, 20, 16)


def test_another_dtype(net, images, fitted, quick_fit):
    with pytest.raises(TypeError, match=r"float64; the model's.*float32.*\.to\(torch\.float32"):
        fitted.attribute(images.double(), target=0)
    with pytest.raises(TypeError, match=r"dtype int64; the fit saw float32.*\.to\(torch\.float32"):
        fitted.attribute(images.long(), target=0)
    with pytest.raises(TypeError, match="float64; the model's parameters are torch"):
        quick_fit(InfoBottleneckAttribution(net, "stage2"), [images.double()])


def test_a_fit_serves_the_same_model_in_another_precision(net, images, fitted):
    expected = fitted.attribute(images, target=0)
    double = fitted.bind(copy.deepcopy(net).double())
    torch.testing.assert_close(double.attribute(images.double(), 0).float(), expected)
    torch.testing.assert_close(fitted.attribute(images, target=0), expected)


def test_changed_weights_are_a_warning(net, images, fitted, recwarn):
    fitted.attribute(images, target=0)
    assert not recwarn.list
    net.fc.weight.data.mul_(2)
    with pytest.warns(UserWarning, match="weights have changed since the fit"):
        fitted.attribute(images, target=0)
    net.fc.weight.data.div_(2)
    recwarn.clear()
    fitted.attribute(images, target=0)
    assert not recwarn.list


def test_a_look_at_tensors_with_gaps_and_repetitions(net, images, quick_fit):
    net.register_buffer("mean", torch.zeros(3, 1, 1).expand(3, 12, 12))
    net.register_buffer("some", torch.rand(8, 6)[:, ::2])
    net.register_buffer("none", torch.zeros(0, 3))
    attr = quick_fit(InfoBottleneckAttribution(net, "stage2"), [images])
    attr.attribute(images, 0)
    net.some += 1
    with pytest.warns(UserWarning, match="weights have changed"):
        attr.attribute(images, 0)


def test_a_look_at_tensors_of_every_type(net, images, quick_fit, recwarn):
    for dtype in (torch.bool, torch.int64, torch.float16, torch.bfloat16, torch.complex64):
        net.register_buffer(str(dtype).replace(".", "_"), torch.ones(5, dtype=dtype))
    attr = quick_fit(InfoBottleneckAttribution(net, "stage2"), [images])
    recwarn.clear()
    attr.attribute(images, 0)
    attr.attribute(images, 0)
    assert not recwarn.list
    for name in ("torch_bool", "torch_complex64"):
        getattr(net, name).data.zero_()
        with pytest.warns(UserWarning, match="weights have changed"):
            attr.attribute(images, 0)


def test_a_look_at_weights_copies_none(net):
    """Whatever their memory format: a copy of all weights costs more than a map of one image."""
    net.to(memory_format=torch.channels_last)
    for weight in (net.stage2[0].weight, net.fc.weight, net.fc.weight.T, net.fc.bias[0]):
        stored = _as_stored(weight)
        assert stored.data_ptr() == weight.data_ptr()
        assert torch.equal(stored.sort().values, weight.flatten().sort().values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1; got 0"),
        ({"steps": 2e3}, "steps must be an integer >= 1; got 2000.0"),
        ({"bank_size": 64.0}, "bank_size must be an integer >= 0; got 64.0"),
        ({"beta1": None}, "beta1 must be a number >= 0; got None"),
        ({"task": "x"}, "task must be"),
        ({"beta2": -1.0}, "beta2 must be a number >= 0; got -1.0"),
        ({"beta2": 1.0, "kappa": 1.0}, "beta2 and kappa exclude each other"),
        ({"kappa": 0.0}, "kappa must be a number > 0; got 0.0"),
        ({"task": "labels"}, "needs labels; the loader yielded inputs alone"),
    ],
)
def test_fit_options(net, images, quick_fit, options, message):
    with pytest.raises(ValueError, match=message):
        quick_fit(InfoBottleneckAttribution(net, "stage2"), [images], **options)


@pytest.mark.parametrize(
    ("labels", "output", "message"),
    [
        (torch.zeros(32, 2, dtype=torch.long), None, "expected one class index for each example"),
        (torch.zeros(32, dtype=torch.long), "bernoulli", "expected 0 or 1 for each of 5 independ"),
    ],
)
def test_labels_of_another_shape(net, images, quick_fit, labels, output, message):
    attr = InfoBottleneckAttribution(net, "stage2", output=output)
    with pytest.raises(ValueError, match=message):
        quick_fit(attr, [(images, labels)], task="labels")


@pytest.mark.parametrize(
    ("labels", "output", "message"),
    [
        (torch.arange(32) % 5 + 1, None, "from 1 to 5; expected indices of 5 classes, from 0"),
        (torch.arange(32) % 5 - 1, None, "from -1 to 3; expected indices of 5 classes"),
        (torch.full((32, 5), 2.0), None, "from 2 to 2; expected probabilities, from 0 to 1"),
        (torch.full((32, 5), -1), "bernoulli", "from -1 to -1; expected 0 or 1"),
    ],
)
def test_labels_out_of_range(net, images, quick_fit, labels, output, message):
    attr = InfoBottleneckAttribution(net, "stage2", output=output)
    with pytest.raises(ValueError, match=message):
        quick_fit(attr, [(images, labels)], task="labels")


def test_inputs_of_different_lengths(quick_fit):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x, rows):
            return self.conv(x).mean((2, 3)) + rows

    x, rows = torch.randn(8, 3, 6, 6), torch.randn(1, 4)
    attr = InfoBottleneckAttribution(Two(), "conv")
    message = r"\(8, 3, 6, 6\), \(1, 4\)\]; expected as many examples in each"
    with pytest.raises(ValueError, match=message):
        quick_fit(attr, [((x, rows), None)])
    quick_fit(attr, [((x, rows.expand(8, 4)), None)])
    with pytest.raises(ValueError, match=message):
        attr.attribute((x, rows), 0)


@pytest.mark.parametrize("labels", [torch.zeros(1, dtype=torch.long), torch.zeros(()),
                                    torch.zeros(33, dtype=torch.long)])
def test_as_many_labels_as_examples(net, images, quick_fit, labels):
    shape = re.escape(str(tuple(labels.shape)))
    batch = Batch((images,), labels)
    with pytest.raises(ValueError, match=f"labels of shape {shape} came with 32 examples"):
        quick_fit(InfoBottleneckAttribution(net, "stage2"), [batch], task="labels")


@pytest.mark.parametrize("loader", [None, lambda: [torch.randn(4, 3, 12, 12)]])
def test_a_loader_that_cannot_be_walked(net, quick_fit, loader):
    with pytest.raises(TypeError, match=f"got a {type(loader).__name__}, which cannot be walked"):
        quick_fit(InfoBottleneckAttribution(net, "stage2"), loader)


def test_a_batch_that_was_meant_to_be_a_loader(net, images, quick_fit):
    labels = torch.zeros(32, dtype=torch.long)
    message = r"batches differ: input 0 has dtype int64; .* is \[\(inputs, labels\)\]"
    with pytest.raises(TypeError, match=message):
        quick_fit(InfoBottleneckAttribution(net, "stage2"), (images, labels))


def test_labels_that_are_no_tensor(net, images, quick_fit):
    loader = [(images, [0] * len(images))]
    with pytest.raises(ValueError, match="yielded labels that are a list and no tensor"):
        quick_fit(InfoBottleneckAttribution(net, "stage2"), loader, task="labels")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "x"}, r"noise must be one of \('matched', 'standard'\); got 'x'"),
        ({"inference": "x"}, "inference must be one of"),
        ({"critic": "x"}, "critic must be one of"),
        ({"output": "x"}, "output must be one of"),
        ({"marginal": "x"}, "marginal must be one of"),
        ({"on_repeat": "x"}, "on_repeat must be one of"),
        ({"alpha": 1.5}, r"alpha must lie in \[0, 1\]; got values from 1.5"),
    ],
)
def test_construction_options(net, options, message):
    with pytest.raises(ValueError, match=message):
        InfoBottleneckAttribution(net, "stage2", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"information": "x"}, "information must be one of"),
        ({"estimator": "x"}, "estimator must be one of"),
        ({"unit": "x"}, "unit must be one of .*'bits'"),
        ({"internal_batch_size": 0}, "internal_batch_size must be an integer >= 1; got 0"),
    ],
)
def test_attribute_options(fitted, images, options, message):
    with pytest.raises(ValueError, match=message):
        fitted.attribute(images, target=0, **options)


def test_infomax_without_critics(net, images, quick_fit):
    attr = quick_fit(InfoBottleneckAttribution(net, "stage2"), [images], beta1=0)
    assert not attr.history.info_nce
    with pytest.raises(ValueError, match="beta1=0 leaves out"):
        attr.attribute(images, estimator="infomax")


def test_divergence_is_caught_early(net, images, quick_fit):
    attr = InfoBottleneckAttribution(net, "stage2")
    with pytest.raises(FloatingPointError, match=r"the fit diverged: .* Lower lr"):
        quick_fit(attr, [images], lr=1e12, steps=50)


def test_fit_warnings(net, images):
    attr = LayerInfoBottleneckAttribution(net, "stage2")
    with pytest.warns(UserWarning, match="no better than the marginal"):
        attr.fit([images], steps=1, progress=False)
    with pytest.warns(UserWarning, match="by .* nats, and its target, kappa, is 5"):
        attr.fit([images], steps=2, kappa=5.0, progress=False)


def test_a_model_that_returns_no_tensor(images, quick_fit):
    attr = InfoBottleneckAttribution(nn.Sequential(nn.Tanh(), Named("dict")), "0")
    with pytest.raises(TypeError, match="the model returned a dict; expected a tensor"):
        quick_fit(attr, [images])


def test_inputs_that_a_loader_gives_too_few_or_too_many_of(net, images, quick_fit):
    """A pair of inputs is taken for inputs and labels, and further labels for inputs."""
    two = nn.Bilinear(4, 5, 3)
    rows = torch.randn(8, 4), torch.randn(8, 5)
    message = r"argument.* was taken for {}: a pair is \(inputs, labels\)"
    with pytest.raises(TypeError, match=message.format(r"1 input\(s\) and labels")):
        quick_fit(LayerInfoBottleneckAttribution(two, ""), [rows])
    labels = torch.zeros(32)
    with pytest.raises(TypeError, match=message.format(r"3 input\(s\)")):
        quick_fit(InfoBottleneckAttribution(net, "stage2"), [(images, labels, labels)])


def test_several_matching_inputs(quick_fit):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, a, b):
            return self.conv(a + b).mean((2, 3))

    model, x = Pair(), torch.randn(8, 3, 6, 6)
    with pytest.raises(ValueError, match=r"inputs \[0, 1\] all match.*map_input="):
        quick_fit(InfoBottleneckAttribution(model, "conv"), [((x, x), None)])
    attr = quick_fit(InfoBottleneckAttribution(model, "conv", map_input=1), [((x, x), None)])
    first, second = attr.attribute((x, x), target=0)
    assert not first.any()
    assert second.any()


def test_a_downstream_function_of_one_class(net, images):
    attr = InfoBottleneckAttribution(
        net, "stage2", global_layer="dropout", downstream=nn.Linear(16, 1))
    with pytest.raises(ValueError, match=r"downstream returned \(32, 1\); expected logits"):
        attr.fit([images], 1, progress=False)


def test_a_scripted_model(net, images):
    with pytest.raises(TypeError, match="whose layers can be hooked"):
        InfoBottleneckAttribution(torch.jit.trace(net, images), "stage1")


def test_a_fit_without_positions_is_loaded_into_the_other_class(net, images, quick_fit, tmp_path):
    quick_fit(LayerInfoBottleneckAttribution(net, "dropout"), [images]).save(tmp_path / "fit")
    with pytest.raises(ValueError, match="it has no positions to map onto the input"):
        InfoBottleneckAttribution.load(tmp_path / "fit", net)


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"refine_steps": -3}, ValueError, "refine_steps must be an integer >= 0; got -3"),
    ({"refine_steps": "9"}, ValueError, "refine_steps must be an integer >= 0; got '9'"),
    ({"alpha_steps": 0.5}, ValueError, "alpha_steps must be an integer >= 0; got 0.5"),
    ({"baselines": 0.5}, ValueError, "only refine_steps=n does; got baselines and refine_steps=0"),
    ({"baselines": float("nan"), "refine_steps": 4}, ValueError, "pass baselines= that the"),
])
def test_refinement_that_cannot_be(fitted, images, options, error, message):
    with pytest.raises(error, match=message):
        fitted.attribute(images, 1, **options)


def test_baselines_that_whole_numbers_cannot_be(quick_fit):
    words = torch.randint(10, (16, 6))
    model = nn.Sequential(nn.Embedding(10, 8), nn.Conv1d(6, 8, 1), nn.Flatten(), nn.Linear(64, 3))
    attr = quick_fit(InfoBottleneckAttribution(model, "0", head_layers=[]), [words])
    attr.attribute(words, 0, refine_steps=2, baselines=1)
    with pytest.raises(ValueError, match=r"baselines=0.9 cannot be values of an input"):
        attr.attribute(words, 0, refine_steps=2, baselines=0.9)


class Flattening(nn.Module):
    """Has a grid first, then a sequence."""

    def __init__(self):
        super().__init__()
        self.grid, self.row = nn.Conv2d(3, 8, 3, padding=1), nn.Conv1d(8, 8, 1)
        self.top = nn.Linear(8, 4)

    def forward(self, x):
        return self.top(self.row(self.grid(x).relu().flatten(2)[..., :100]).mean(2))


@pytest.mark.parametrize("where", ["head_layers", "context_layers"])
def test_layers_of_other_axes(images, where):
    attr = InfoBottleneckAttribution(
        Flattening(), "grid", channel_axis="first", **{
            "head_layers": [], "context_layers": "grid", where: "row"})
    with pytest.raises(ValueError, match="layer 'row' has 1 position axes and others have 2"):
        attr.fit([images], 1, progress=False)


def test_a_batch_of_a_bare_tensor(images):
    with pytest.raises(TypeError, match=r"tuple of tensors; got a Tensor. One input is Batch\(\("):
        Batch(images)


class EndsInSoftmax(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).softmax(1)


@pytest.mark.parametrize("options", [
    {}, {"global_layer": "net.dropout"},
    {"global_layer": "net.dropout", "downstream": lambda y: y[:, :5].softmax(1)},
])
def test_probabilities_that_are_taken_for_logits(net, images, options):
    attr = InfoBottleneckAttribution(EndsInSoftmax(net), "net.stage2", **options)
    with pytest.warns(UserWarning, match="as if they came from a softmax") as caught:
        attr.fit([images], 1, progress=False, bank_size=64)
    told = next(str(one.message) for one in caught if "softmax" in str(one.message))
    advised = "let downstream" if "downstream" in options else (
        "prediction='probabilities'" if options else "output='probabilities'")
    assert advised in told
    assert ("prediction=" in told) == (advised == "prediction='probabilities'")


@pytest.mark.parametrize("classes", [1, 5])
def test_labels_of_a_sigmoid_that_are_taken_for_logits(net, images, classes):
    model = nn.Sequential(type(net)(classes=classes).eval(), nn.Sigmoid())
    advised = "output='bernoulli'" if classes > 1 else "output='probabilities'"
    with pytest.warns(UserWarning, match=f"from a sigmoid.* taken for logits.*{advised}"):
        InfoBottleneckAttribution(model, "0.stage2").fit([images], 1, progress=False)


def test_a_map_of_logits_is_no_number_of_classes(images):
    model = nn.Sequential(nn.Conv2d(3, 200, 3, padding=1), nn.ReLU())
    with pytest.raises(ValueError, match="returns 28800 numbers .* such as logits pooled over a"):
        InfoBottleneckAttribution(model, "0").fit([images], 1, progress=False)


def test_the_distortion_that_is_told_is_one_that_was(net, images):
    attr = InfoBottleneckAttribution(net, "stage2")
    with pytest.warns(UserWarning, match="the noise changes the prediction by") as caught:
        attr.fit([images], 1, progress=False, bank_size=64)
    told = next(str(one.message) for one in caught if "the noise changes" in str(one.message))
    assert f"prediction by {attr.history.distortion[-1]:.3g} nats" in told


def test_a_loader_of_single_labelled_examples(net, images):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(image, 1) for image in images])

    with pytest.raises(TypeError, match="examples one by one"):
        InfoBottleneckAttribution(net, "stage2").fit(Stream(), 1, progress=False)


def test_choices_that_would_have_no_effect(net):
    with pytest.raises(ValueError, match="marginal='uniform' is for .* a downstream function"):
        InfoBottleneckAttribution(net, "stage2", marginal="uniform")
    with pytest.raises(ValueError, match="context_layers is an empty list"):
        InfoBottleneckAttribution(net, "stage2", context_layers=[])


def test_a_model_made_in_inference_mode(images):
    with torch.inference_mode():
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(),
                                    torch.nn.Linear(400, 3))
    with pytest.raises(ValueError, match=r"made under torch\.inference_mode"):
        InfoBottleneckAttribution(model, "0").fit([images], 1, progress=False)
    again = copy.deepcopy(model)
    InfoBottleneckAttribution(again, "0").fit([images], 1, progress=False)


def test_values_that_are_taken_for_logits(images, recwarn):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(),
                                torch.nn.Linear(400, 1))
    model[3].bias.data.fill_(-60)
    InfoBottleneckAttribution(model, "1").fit([images], 1, progress=False)
    assert any("pass output='gaussian'" in str(one.message) for one in recwarn)
    recwarn.clear()
    InfoBottleneckAttribution(model, "1", output="gaussian").fit([images], 1, progress=False)
    assert not any("pass output='gaussian'" in str(one.message) for one in recwarn)


def test_a_module_that_passes_no_gradient_on(images):
    """It may only say so when it is asked, as a quantised one does."""

    class Blocked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return None

    class Quantised(nn.Module):
        def forward(self, x):
            return Blocked.apply(x)

    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), Quantised(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5)).eval()
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        InfoBottleneckAttribution(model, "1").fit([images], steps=2, progress=False)


def test_a_layer_of_a_single_position_warns():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    images = torch.randn(32, 3, 12, 12)
    with pytest.warns(UserWarning, match="layer '2' has a single position, whose map is flat"):
        InfoBottleneckAttribution(model, "2").fit([images], 1, progress=False)
