"""Features with their channels last, tokens with a class token, and networks of one grid."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer
from torchvision.models.video import SwinTransformer3d

from captum_mi import InfoBottleneckAttribution, LayerInfoBottleneckAttribution
from captum_mi.model.batches import Batch
from captum_mi.model.passes import Passes
from captum_mi.model.sites import find_sites
from captum_mi.model.strides import channels_are_last
from captum_mi.probing.probe import _default_stages
from captum_mi.probing.stages import stage_layers


class Rearranged(nn.Module):
    """A network whose middle layer returns its features in one of several layouts."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.middle = nn.Identity()
        self.top = nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.layout == "last":
            x = self.middle(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        elif self.layout == "tokens":
            x = self.middle(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (8, 12))
        else:
            x = self.middle(x)
        logits: Tensor = self.top(x).mean((2, 3))
        return logits


@pytest.mark.parametrize("layout", ["last", "tokens"])
def test_the_layout_of_features_changes_no_map(layout, quick_fit):
    images = torch.randn(16, 3, 16, 24, generator=torch.manual_seed(1))
    maps = []
    for one in ("first", layout):
        torch.manual_seed(0)
        model = Rearranged(one).eval()
        attr = quick_fit(InfoBottleneckAttribution(model, "middle"), [images], steps=5)
        maps.append(attr.attribute(images, 2, refine_steps=2))
    torch.testing.assert_close(maps[1], maps[0], rtol=0, atol=1e-5 * float(maps[0].abs().max()))


@pytest.fixture
def vit() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, num_layers=8, num_heads=2, hidden_dim=16, mlp_dim=32,
                              num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero
    return model


@pytest.fixture
def pictures() -> Tensor:
    return torch.randn(12, 3, 32, 32, generator=torch.manual_seed(1))


def test_a_vision_transformer_is_read_at_its_quarters(vit, pictures, quick_fit, tmp_path):
    attr = quick_fit(InfoBottleneckAttribution(vit), [pictures])
    assert attr.layers == [f"encoder.layers.encoder_layer_{i}" for i in (3, 5)]
    assert [site.layer[-1] for site in attr.networks.head_sites] == ["7"]
    maps = attr.attribute(pictures, 1)
    assert maps.shape == pictures.shape
    scale = float(maps.abs().max())
    assert scale > 0
    torch.testing.assert_close(attr.attribute(pictures[3:4], 1), maps[3:4], rtol=0,
                               atol=1e-5 * scale)
    attr.save(tmp_path / "fit.safetensors")
    again = InfoBottleneckAttribution.load(tmp_path / "fit.safetensors", vit)
    torch.testing.assert_close(again.attribute(pictures, 1), maps, rtol=0, atol=0)
    layer = LayerInfoBottleneckAttribution(vit, "encoder.layers.encoder_layer_3")
    assert quick_fit(layer, [pictures]).attribute(pictures, 1).shape == (12, 1, 4, 4)


def test_nothing_passes_beside_the_bottleneck(vit, pictures, quick_fit):
    """The class token is noised too: at alpha 1 all images look the same, at 0 nothing changes."""
    layer = "encoder.layers.encoder_layer_3"
    for alpha in (0.0, 1.0):
        attr = quick_fit(InfoBottleneckAttribution(vit, layer, alpha=alpha), [pictures])
        (token,) = attr.networks.tokens
        assert token.name == f"{layer} token 0"
        seen = attr.predict_noised(pictures)
        with torch.no_grad():
            expected = vit(pictures) if alpha == 0 else seen[:1].expand_as(seen)
        torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)


def test_a_network_with_channels_last(pictures, quick_fit):
    model = SwinTransformer([2, 2], 8, [1, 1, 1], [1, 1, 2], [2, 2], num_classes=5,
                            stochastic_depth_prob=0.0).eval()
    attr = quick_fit(InfoBottleneckAttribution(model), [pictures])
    grids = [tuple(site.view(torch.zeros(1, n, n, site.channels)).shape)
             for site, n in zip(attr.networks.sites, (16, 8))]
    assert grids == [(1, 8, 16, 16), (1, 16, 8, 8)]
    assert attr.attribute(pictures, 1).shape == pictures.shape


def test_a_network_of_videos_with_channels_last(quick_fit):
    """Frames have another stride than pixels."""
    model = SwinTransformer3d([2, 4, 4], 48, [1, 1, 1], [1, 1, 2], [2, 2, 2], num_classes=5,
                              stochastic_depth_prob=0.0).eval()
    videos = torch.randn(4, 3, 8, 32, 32)
    attr = quick_fit(InfoBottleneckAttribution(model), [videos])
    assert attr.layers == ["pos_drop", "features.2"]
    assert {site.layout for site in attr.networks.all_sites} == {"channels_last"}
    assert attr.attribute(videos, 1).shape == videos.shape


class Text(nn.Module):
    """Tokens of a sequence, embedded and encoded: features (N, L, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.encoder = nn.Linear(8, 6)
        self.top = nn.Linear(6, 3)

    def forward(self, words: Tensor) -> Tensor:
        logits: Tensor = self.top(self.encoder(self.embedding(words)).relu().mean(1))
        return logits


@pytest.mark.parametrize("length", [10, 6])  # the second is the number of channels, too
def test_words_that_trade_places_take_their_maps_along(length, quick_fit):
    """The model reads each word by itself, and an inference network of one position too."""
    words = torch.randint(20, (16, length), generator=torch.manual_seed(0))
    attr = quick_fit(
        InfoBottleneckAttribution(Text().eval(), "encoder", inference="mlp"), [words], steps=20)
    assert attr.networks.sites[0].channels == 6
    order = torch.randperm(length)
    maps = attr.attribute(words, 1, weighting="none")
    assert maps.std(1).mean() > 0
    torch.testing.assert_close(attr.attribute(words[:, order], 1, weighting="none"),
                               maps[:, order], rtol=0, atol=1e-5 * float(maps.abs().max()))


class Question(nn.Module):
    """About a text: each is read by layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.question = (
            nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 6)) for _ in range(2))
        self.top = nn.Linear(6, 3)

    def forward(self, text: Tensor, question: Tensor) -> Tensor:
        logits: Tensor = self.top(self.text(text).mean(1) * self.question(question).mean(1))
        return logits


@pytest.mark.parametrize(("map_input", "name"), [(0, "text"), (1, "question")])
def test_layers_are_found_that_depend_on_the_input_of_the_map(map_input, name, quick_fit):
    generator = torch.manual_seed(0)
    text, question = (torch.randint(20, (16, n), generator=generator) for n in (12, 9))
    attr = InfoBottleneckAttribution(Question().eval(), map_input=map_input)
    quick_fit(attr, [((text, question), None)])
    assert attr.layers == [name]
    maps = attr.attribute((text, question), 1, weighting="none")
    assert maps[map_input].std(1).mean() > 0
    other = [text, question]
    other[map_input] = other[map_input].flip(1)
    changed = attr.attribute(tuple(other), 1, weighting="none")[map_input]
    assert (changed - maps[map_input]).abs().max() > 1e-3 * maps[map_input].abs().max()


def test_a_layer_that_does_not_see_the_input_of_the_map_is_a_warning(recwarn):
    generator = torch.manual_seed(0)
    text, question = (torch.randint(20, (16, n), generator=generator) for n in (12, 9))
    for map_input in (0, 1):
        attr = InfoBottleneckAttribution(Question().eval(), "text", map_input=map_input)
        attr.fit([((text, question), None)], 1, progress=False, bank_size=64)
        found = [one for one in recwarn if "turned round" in str(one.message)]
        assert len(found) == map_input
    assert "layer 'text' returned the same features for input 1" in str(found[0].message)
    assert found[0].filename == __file__


@pytest.mark.parametrize("layer", [None, "text"])
def test_no_layers_are_looked_for_that_depend_on_an_input_there_is_not(layer, quick_fit):
    attr = InfoBottleneckAttribution(Question().eval(), layer, map_input=2)
    words = torch.zeros(4, 9, dtype=torch.long)
    with pytest.raises(ValueError, match="map_input=2 is out of range for 2 inputs"):
        quick_fit(attr, [((words, words), None)])


def test_as_many_channels_as_words_are_said(quick_fit):
    class Convolved(nn.Sequential):
        def forward(self, words: Tensor) -> Tensor:
            return self[2](self[1](self[0](words).transpose(1, 2)).mean(2))

    def model() -> nn.Module:
        conv = nn.Conv1d(8, 6, 3, padding=1)
        return Convolved(nn.Embedding(20, 8), conv, nn.Linear(6, 3)).eval()

    words = torch.randint(20, (16, 6), generator=torch.manual_seed(0))
    with pytest.warns(UserWarning, match="the last for channels.*channel_axis='first' if not"):
        InfoBottleneckAttribution(model(), "1").fit(
            [words], steps=2, bank_size=64, progress=False)
    attr = quick_fit(InfoBottleneckAttribution(model(), "1", channel_axis="first"), [words])
    assert attr.networks.sites[0].layout == "channels_first"


def test_layers_of_a_reader_of_words_are_found(quick_fit):
    words = torch.randint(20, (16, 9), generator=torch.manual_seed(0))
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(block, 4, enable_nested_tensor=False)
    model = nn.Sequential(nn.Embedding(20, 8), encoder, nn.Flatten(), nn.Linear(72, 3)).eval()
    attr = quick_fit(InfoBottleneckAttribution(model), [words])
    assert attr.layers == ["1.layers.1", "1.layers.2"]
    assert [site.layer for site in attr.networks.head_sites] == ["1.layers.3"]
    assert attr.attribute(words, 1).shape == words.shape


@pytest.mark.parametrize(("features", "axis"), [(6, None), (40, "last")])
def test_inputs_with_their_features_last(features, axis, quick_fit):
    model = nn.Sequential(nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, 3),
                          nn.Flatten(), nn.Linear(60, 3)).eval()
    x = torch.randn(32, 20, features)
    attr = InfoBottleneckAttribution(model, "1", inference="mlp", channel_axis=axis)
    maps = quick_fit(attr, [x], steps=20).attribute(x, 1)
    assert maps.shape == x.shape
    assert maps.std(1).mean() > 0  # between steps
    torch.testing.assert_close(maps, maps[..., :1].expand_as(maps))  # shared by their features


class Rows(nn.Module):
    """A convolution over the time of a sequence, or the places of an image, channels last."""

    def __init__(self, axes: int, features: int, stride: int, padding: int) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d}[axes]
        self.conv = conv(features, 8, 3, stride, padding)
        self.top = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.conv(x.movedim(-1, 1)).relu().flatten(2).mean(2))


@pytest.mark.parametrize(("shape", "stride", "padding", "axis"), [
    ((20, 6), 1, 0, None), ((20, 6), 2, 1, None), ((20, 40), 1, 1, "last"),
    ((24, 24, 3), 2, 1, None), ((24, 18, 3), 4, 0, None), ((24, 24, 3), 8, 1, None),
    ((8, 8, 16), 2, 1, "last"),
])
def test_maps_lie_on_the_positions_of_inputs_with_channels_last(
    shape, stride, padding, axis, quick_fit
):
    model = Rows(len(shape) - 1, shape[-1], stride, padding).eval()
    x = torch.randn(16, *shape)
    attr = InfoBottleneckAttribution(
        model, "conv", head_layers=[], context_layers="conv", input_channel_axis=axis)
    quick_fit(attr, [x], steps=20)
    for options in ({}, {"refine_steps": 4}):
        maps = attr.attribute(x, 1, **options)
        torch.testing.assert_close(maps, maps[..., :1].expand_as(maps))
        assert maps.std(1).mean() > 0
    longer = torch.randn(4, *(2 * length for length in shape[:-1]), shape[-1])
    assert attr.attribute(longer, 1).shape == longer.shape
    with pytest.raises(ValueError, match=f"the fit saw {shape[-1]}"):
        attr.attribute(torch.cat([x, x], -1), 1)


@pytest.mark.parametrize("size", [(20, 156), (12, 60), (64, 48)])
def test_the_layout_of_inputs_is_that_of_the_fit_whatever_their_size(size, quick_fit):
    """Images of three rows and many columns are still images of three colours."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=8, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4)).eval()
    attr = quick_fit(InfoBottleneckAttribution(model, "1"), [torch.randn(8, 3, 64, 64)], steps=2)
    x = torch.randn(2, 3, *size)
    for options in ({}, {"refine_steps": 4}):
        maps = attr.attribute(x, 1, **options)
        torch.testing.assert_close(maps, maps[:, :1].expand_as(maps))


@pytest.mark.parametrize("shape", [(64, 8), (20, 40), (3, 24, 24), (24, 24, 24), (64, 4, 4)])
@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (1, 2), (1, 0)])
def test_channels_come_first_where_both_would_do(shape, stride, padding):
    size = [(length + 2 * padding - 3) // stride + 1 for length in shape[1:]]
    assert not channels_are_last(tuple(size), (2, *shape), None)


@pytest.mark.parametrize(("name", "size", "expected"), [
    ("resnet18", (64, 64), ["layer1", "layer2", "layer3", "layer4"]),
    ("convnext_tiny", (64, 64), ["features.1", "features.3", "features.5", "features"]),
    ("swin_t", (64, 64), ["features.1", "features.3", "features.5", "permute"]),
    ("swin_v2_t", (64, 64), ["features.1", "features.3", "features.5", "permute"]),
    ("vgg11", (64, 64), ["features.9", "features.14", "features.19", "features"]),
    ("mc3_18", (4, 32, 32), ["layer1", "layer2", "layer3", "layer4"]),
    ("r2plus1d_18", (8, 32, 32), ["layer1", "layer2", "layer3", "layer4"]),
    ("swin3d_t", (8, 64, 64), ["pos_drop", "features.2", "features.4", "norm"]),
])
def test_stages_of_torchvision_networks(name, size, expected):
    factory = torchvision.models.get_model
    x = torch.randn(2, 3, *size)
    assert stage_layers(factory(name).eval(), (x,), (), len(size)) == expected


def test_a_pool_that_changes_nothing_ends_the_last_stage():
    """As in a VGG at the resolution that it is made for: 7 x 7 positions pooled to 7 x 7."""
    widths = [8, "M", 8, "M", 8, 8, "M", 8, 8, "M", 8, 512, "M"]
    model = torchvision.models.VGG(
        torchvision.models.vgg.make_layers(widths), init_weights=False).eval()
    stages = stage_layers(model, (torch.randn(2, 3, 224, 224),), (), 2)
    assert stages == ["features.9", "features.14", "features.19", "avgpool"]


def test_stages_of_dilated_convolutions():
    """Three stages of one grid."""
    model = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True])
    x = torch.randn(2, 3, 64, 64)
    stages = stage_layers(model.eval(), (x,), (), 2)
    assert stages == ["layer1", "layer2", "layer3", "layer4"]


class Attention(nn.Module):
    """A transformer's block whose dropout shows the matrix of attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(0.1)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = self.dropout((q @ k.mT / 4).softmax(-1)) @ v
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Patches(nn.Module):
    """A vision transformer as timm lays it out, with modules that do nothing at the top."""

    def __init__(self, before: type[nn.Module], after: nn.Module) -> None:
        super().__init__()
        self.patch, self.cls = nn.Conv2d(3, 32, 16, 16), nn.Parameter(torch.zeros(1, 1, 32))
        self.patch_drop, self.norm_pre = before(), after
        self.blocks = nn.Sequential(*(Attention(32) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).mT
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        return self.head(self.norm(self.blocks(self.norm_pre(self.patch_drop(x))))[:, 0])


@pytest.mark.parametrize(("before", "after"), [
    (nn.Identity, nn.Identity()), (nn.Identity, nn.LayerNorm(32)), (nn.Dropout, nn.Identity())])
def test_stages_of_a_transformer_are_its_blocks(before, after):
    """Not what surrounds them, and not the 17 x 17 weights of attention."""
    stages = stage_layers(Patches(before, after).eval(), (torch.randn(8, 3, 64, 64),), (), 2)
    assert stages == ["blocks.2", "blocks.5", "blocks.8", "blocks.11"]


class Words(nn.Module):
    """An encoder of words as Hugging Face lays it out; all words are of one type."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.kind = nn.Embedding(50, 32), nn.Embedding(2, 32)
        self.layer = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 2, 64, batch_first=True) for _ in range(4))

    def forward(self, words: Tensor) -> Tensor:
        x = self.word(words) + self.kind(torch.zeros_like(words))
        for layer in self.layer:
            x = layer(x)
        return x[:, 0]


def test_stages_of_an_encoder_of_words_are_its_blocks():
    words = torch.randint(50, (8, 12), generator=torch.manual_seed(0))
    assert stage_layers(Words().eval(), (words,), (), 1) == [f"layer.{i}" for i in range(4)]


def test_weights_are_no_stages():
    """A parametrised weight has as many rows as the batch where channels are as many."""
    convs = [nn.utils.parametrizations.spectral_norm(nn.Conv2d(i, o, 3, 2, 1))
             for i, o in ((3, 8), (8, 16), (16, 32))]
    model = nn.Sequential(*(nn.Sequential(conv, nn.ReLU()) for conv in convs)).eval()
    for rows in (8, 16, 32):
        assert stage_layers(model, (torch.randn(rows, 3, 32, 32),), (), 2) == ["0", "1", "2"]


def test_units_are_no_positions(quick_fit):
    """Tokens of a spectrogram's patches, of which there is no sequence like the inputs'."""
    blocks = [nn.TransformerEncoderLayer(48, 2, 96, batch_first=True) for _ in range(4)]
    model = nn.Sequential(nn.Unflatten(1, (1, 128)), nn.Conv2d(1, 48, 16, 10), Tokens(),
                          *blocks, nn.Flatten(), nn.Linear(1152, 3))
    with pytest.raises(ValueError, match="whose positions do not follow the inputs'"):
        quick_fit(InfoBottleneckAttribution(model.eval()), [torch.randn(8, 128, 32)])


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mT


class Block(nn.Module):
    """Returns its tokens in a tuple, as blocks of some libraries do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x + self.linear(x).relu(),)


class Blocks(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.layer = nn.ModuleList(Block() for _ in range(count))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.layer:
            (x,) = block(x)
        return self.norm(x).mean(1)


@pytest.mark.parametrize(("count", "layers"), [(3, [0, 1]), (6, [2, 3])])
def test_blocks_that_return_tuples(count, layers, pictures, quick_fit):
    attr = quick_fit(InfoBottleneckAttribution(Blocks(count).eval()), [pictures])
    assert attr.layers == [f"layer.{i}" for i in layers]
    assert attr.attribute(pictures, 1).shape == pictures.shape


def test_stages_of_a_decoder_of_flat_inputs():
    model = nn.Sequential(nn.Linear(10, 64), nn.Unflatten(1, (4, 4, 4)),
                          nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1))
    assert stage_layers(model.eval(), (torch.randn(3, 10),), (), 2) == ["1", "3"]


def test_queries_are_no_patches(pictures):
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(2), nn.Linear(64, 12))
    assert stage_layers(model.eval(), (pictures,), (), 2) == ["1"]


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_tokens_fill_the_grid_of_the_image(prefix):
    features = torch.randn(2, prefix + 3 * 5, 7)
    (site,), tokens = find_sites("block", features, [(2, 3, 48, 80)])
    assert (site.prefix, site.grid, len(tokens)) == (prefix, (3, 5), prefix)
    view = site.view(features)
    assert view[1, 4, 2, 3] == features[1, prefix + 2 * 5 + 3, 4]
    assert torch.equal(site.put(features, view), features)
    for i, token in enumerate(tokens):
        assert torch.equal(token.view(features), features[:, i])
        changed = token.put(features, torch.zeros(2, 7))
        assert (changed[:, i] == 0).all()
        assert changed.count_nonzero() == features.count_nonzero() - 14


def test_tokens_that_are_no_patches():
    with pytest.raises(ValueError, match="returned 40 tokens; expected one for each square patch"):
        find_sites("block", torch.randn(2, 40, 7), [(2, 3, 64, 64)], "last")


def test_another_number_of_tokens_than_in_the_fit(vit, pictures, quick_fit):
    attr = quick_fit(InfoBottleneckAttribution(vit), [pictures])
    with pytest.raises(ValueError, match=r"the fit saw \(N, 1 \+ 4 x 4 tokens, 16\)"):
        attr.networks.sites[0].view(torch.zeros(1, 26, 16))


class Pair(NamedTuple):
    features: Tensor
    twice: Tensor


class Named(nn.Module):
    """Returns a named tuple, whose names the model uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Pair:
        h = self.conv(x).relu()
        return Pair(h, 2 * h)


class OfNamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.top = Named(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.body(x).features.mean((2, 3)))


def test_a_layer_that_returns_a_named_tuple(pictures, quick_fit):
    attr = quick_fit(InfoBottleneckAttribution(OfNamed(), "body"), [pictures])
    assert attr.attribute(pictures, 1).shape == pictures.shape


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_scripted_part_before_the_layer(pictures, quick_fit):
    model = nn.Sequential(
        torch.jit.script(nn.Conv2d(3, 8, 3, padding=1)), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    attr = quick_fit(InfoBottleneckAttribution(model, "2"), [pictures])
    assert attr.attribute(pictures, 1, refine_steps=4).shape == pictures.shape


class Padded(nn.Module):
    """PyTorch's encoder packs its tokens into a nested tensor where a mask is given."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
        self.top = nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.top(self.encoder(self.embed(x), src_key_padding_mask=mask).mean(1))


def test_nested_tensors_are_no_stages(quick_fit):
    x, mask = torch.randn(16, 5, 6), torch.zeros(16, 5, dtype=torch.bool)
    mask[:8, 3:] = True
    attr = InfoBottleneckAttribution(Padded().eval(), "embed", channel_axis="last")
    quick_fit(attr, [x], additional_forward_args=mask[:16])
    assert attr.attribute(x, 1, additional_forward_args=mask).shape == x.shape


def test_numbers_that_may_be_a_sequence_or_samples(quick_fit):
    """Sixteen filters over sixteen samples: nothing tells filters from positions."""
    model = nn.Sequential(nn.Unflatten(1, (1, 16)), nn.Conv1d(1, 16, 4, 2, 1), nn.ReLU(),
                          nn.Flatten(), nn.Linear(128, 3))
    x = torch.randn(8, 16)
    with pytest.warns(UserWarning, match="Say channel_axis='last' if that is right"):
        InfoBottleneckAttribution(model, "2").fit([x], 1, progress=False)
    attr = quick_fit(LayerInfoBottleneckAttribution(model, "2", channel_axis="first"), [x])
    assert attr.attribute(x, 1).shape == (8, 1, 8)


class Clips(nn.Module):
    """Takes ``(N, T, C, H, W)``, and convolves ``(N, C, T, H, W)``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x.transpose(1, 2)).relu().mean((2, 3, 4)))


class Waves(nn.Module):
    """Frames of a wave, then units of each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 16, 16, 16)
        self.units = nn.Linear(16, 12)
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.units(self.conv(x[:, None]).relu().transpose(1, 2)).relu().mean(1))


def said_of_places(model, layer, x, axis):
    """Where it was said, in a fit, that positions follow no input's."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        InfoBottleneckAttribution(model.eval(), layer, channel_axis=axis).fit(
            [x], 1, progress=False)
    return [w.filename for w in found
            if f"positions of layer '{layer}'" in str(w.message)
            and "do not follow an input's" in str(w.message)]


@pytest.mark.parametrize(("model", "layer", "shape", "axis"), [
    (Clips, "conv", (4, 4, 3, 8, 8), None),
    (Waves, "units", (8, 256), None),
    (Waves, "conv", (8, 256), "last"),
])
def test_positions_that_are_no_places_are_said(model, layer, shape, axis):
    assert said_of_places(model(), layer, torch.randn(shape), axis) == [__file__]


@pytest.mark.parametrize(("layer", "axis"), [("units", "last"), ("conv", None)])
def test_positions_that_are_places_are_taken_without_a_word(layer, axis):
    assert said_of_places(Waves(), layer, torch.randn(8, 256), axis) == []


@pytest.mark.parametrize(("model", "shape", "layers"), [
    ((nn.Conv1d(1, 8, 5, 2, 2), nn.ReLU(), nn.Conv1d(8, 16, 5, 2, 2), nn.ReLU(),
      nn.Conv1d(16, 16, 5, 2, 2), nn.ReLU(), nn.AdaptiveAvgPool1d(1)), (32, 1, 128), ["1", "3"]),
    ((nn.Conv2d(1, 16, (1, 9), (1, 4), (0, 4)), nn.ReLU(), nn.Conv2d(16, 16, (16, 1)), nn.ReLU(),
      nn.AdaptiveAvgPool2d(1)), (32, 1, 16, 64), ["1", "3"]),
])
def test_signals_of_one_channel(model, shape, layers):
    net = nn.Sequential(*model, nn.Flatten(), nn.Linear(16, 3)).eval()
    assert stage_layers(net, (torch.randn(shape),), (), len(shape) - 2)[: len(layers)] == layers
    assert said_of_places(net, "3", torch.randn(shape), None) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_of_one_row_lies_along_the_columns(channels, quick_fit):
    """As of text lines, or of electrodes that a convolution mixes: channels come first."""
    model = nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, (16, 1), (1, 2)), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).eval()
    attr = quick_fit(InfoBottleneckAttribution(model, "3"), [torch.randn(16, channels, 32, 100)])
    maps = attr.attribute(torch.randn(2, channels, 32, 100), 1)
    assert torch.equal(maps[:, :, :1].expand_as(maps), maps)  # the same in each row
    assert float(maps.std(3).mean()) > 0


@pytest.mark.parametrize(("features", "width", "length"), [
    (12, 32, 40), (32, 32, 24), (40, 32, 50), (64, 32, 50)])
def test_a_transformer_of_sequences_is_read_along_them(features, width, length, quick_fit):
    """Whether its width is more or less than the number of features."""
    model = nn.Sequential(
        nn.Linear(features, width),
        *(nn.TransformerEncoderLayer(width, 2, 32, batch_first=True) for _ in range(4)),
        Pooled(), nn.Linear(width, 3)).eval()
    x = torch.randn(16, length, features)
    attr = quick_fit(InfoBottleneckAttribution(model), [x])
    assert attr.layers == ["2", "3"]
    maps = attr.attribute(x, 1)
    torch.testing.assert_close(maps, maps[..., :1].expand_as(maps))


class Pooled(nn.Module):
    def forward(self, x):
        return x.mean(1)


class PaddedWords(nn.Module):
    """PyTorch's own encoder makes nested tensors of padded words, where it may."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.fc = nn.Embedding(50, 16), nn.Linear(16, 3)
        block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.enc = nn.TransformerEncoder(block, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.enc(self.emb(x), src_key_padding_mask=x == 0)[:, 0])


def test_blocks_of_an_encoder_of_padded_words_are_read(quick_fit):
    x = torch.randint(1, 50, (16, 20))
    x[1:, 12:] = 0
    attr = quick_fit(InfoBottleneckAttribution(PaddedWords().eval()), [x])
    assert attr.layers == ["enc.layers.1", "enc.layers.2"]
    assert attr.attribute(x, 1).shape == x.shape
    assert torch.backends.mha.get_fastpath_enabled()


class Lengths(nn.Module):
    """Asks for words in every example, as turning half of one round may not leave."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.gru = nn.Embedding(20, 8), nn.GRU(8, 16, batch_first=True)
        self.seq, self.fc = nn.Identity(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x > 0).sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(
            self.emb(x), lengths, batch_first=True, enforce_sorted=False)
        out = nn.utils.rnn.pad_packed_sequence(
            self.gru(packed)[0], batch_first=True, total_length=x.shape[1])[0]
        return self.fc(self.seq(out).sum(1) / lengths[:, None])


def test_a_model_that_cannot_take_what_is_tried_out_is_fitted(quick_fit):
    x = torch.randint(1, 20, (32, 20))
    x[torch.arange(20) >= torch.randint(4, 20, (32,))[:, None]] = 0
    attr = quick_fit(InfoBottleneckAttribution(Lengths(), "seq", channel_axis="last"), [x])
    assert attr.attribute(x, 1).shape == x.shape


def test_a_single_position_can_be_named(quick_fit):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(8, 3)).eval()
    x = torch.randn(16, 3, 16, 16)
    attr = quick_fit(InfoBottleneckAttribution(model, ["1", "2"]), [x])
    assert attr.attribute(x, 1).shape == x.shape


class Looped(nn.Module):
    """Runs a layer more often for longer inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        for _ in range(x.shape[2] // 8):
            h = h + self.again(h).relu()
        return 5 * self.fc(h.mean(2))


def test_the_last_call_counts_of_each_batch():
    short, long = torch.randn(8, 2, 16), torch.randn(8, 2, 32)
    for loader in ([short, long], [long, short]):
        attr = InfoBottleneckAttribution(
            Looped(), "again", on_repeat="last", channel_axis="first", alpha=1.0)
        assert min(attr.fit(loader, 4, progress=False).distortion) > 0  # noise everywhere


class Encoder(nn.Module):
    """A transformer on embeddings as wide as itself: its features look like its inputs."""

    def __init__(self, norm_first):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
        self.body = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        return self.fc(self.body(x).mean(1))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("length", [11, 16, 24])
@pytest.mark.parametrize("layer", [None, ["body.layers.1", "body.layers.2"]])
def test_a_transformer_on_embeddings_has_positions_for_tokens(norm_first, length, layer):
    model, x = Encoder(norm_first).eval(), torch.randn(32, length, 16)
    attr = InfoBottleneckAttribution(model, layer)
    attr.fit([x], steps=3, progress=False)
    maps = attr.attribute(x, target=0)
    assert (maps - maps[:, :, :1]).abs().max() == 0  # an embedding's elements share alike
    assert (maps - maps[:, :1]).abs().max() > 0


@pytest.mark.parametrize("name", ["efficientnet_b0", "mnasnet0_5"])
def test_default_layers_do_not_depend_on_the_batch(name):
    """Not where every position of the last stage sees the whole of a small image, either."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=5).eval()
    found = {tuple(stage_layers(model, (torch.randn(8, 3, 64, 64),), (), 2)) for _ in range(4)}
    assert len(found) == 1


def test_a_repeated_layer_that_saw_another_input_is_told():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
            self.fc = nn.Linear(16, 3)

        def forward(self, one, other):
            return self.fc(torch.cat([self.encoder(x).mean((2, 3)) for x in (one, other)], 1))

    pair = torch.randn(2, 16, 3, 16, 16).unbind()
    for on_repeat, map_input, told in (("first", 1, True), ("last", 0, True), ("last", 1, False)):
        attr = InfoBottleneckAttribution(
            Siamese(), "encoder.1", on_repeat=on_repeat, map_input=map_input, head_layers=[],
            context_layers="encoder.1")
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            attr.fit([(pair, None)], steps=2, progress=False)
        assert any("returned the same features" in str(one.message) for one in found) == told


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_inputs_than_the_mapped_one_may_be_longer_than_in_the_fit():
    class Captioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
            self.fc = nn.Linear(8 + 6, 3)

        def forward(self, image, words):
            return self.fc(torch.cat([self.body(image).mean((2, 3)), words.mean(1)], 1))

    image = torch.randn(16, 3, 16, 16)
    attr = InfoBottleneckAttribution(Captioned().eval(), "body")
    attr.fit([((image, torch.randn(16, 7, 6)), None)], steps=2, progress=False)
    assert attr.attribute((image, torch.randn(16, 9, 6)), target=0)[0].shape == image.shape


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_that_takes_whole_batches_alone_is_fitted():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.ReLU())
            self.fc = nn.Linear(8, 3)

        def forward(self, x):
            return self.fc(self.body(x).reshape(16, 8, 20).mean(2))

    x = torch.randn(16, 3, 20)
    for layer in (None, "body"):
        attr = InfoBottleneckAttribution(Whole().eval(), layer)
        attr.fit([x], steps=2, progress=False)
        assert attr.attribute(x, target=0).shape == x.shape


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_of_two_precisions_takes_what_it_takes():
    class Tower(nn.Module):
        """Half precision, but for a parameter that comes first, as CLIP's."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).bfloat16()
            self.fc = nn.Linear(8, 3).bfloat16()

        def forward(self, x):
            return self.scale * self.fc(self.body(x).mean((2, 3))).float()

    x = torch.randn(16, 3, 8, 8).bfloat16()
    attr = InfoBottleneckAttribution(Tower().eval(), "body")
    attr.fit([x], steps=2, progress=False)
    assert attr.attribute(x, target=0).isfinite().all()
    with pytest.raises(TypeError, match="has dtype torch.float64"):
        attr.attribute(x.double(), target=0)


def test_sequences_that_attention_mixes_are_read_along_their_length_whatever_the_batch():
    """Hidden units may seem to follow the input then, in one batch or another."""
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
            self.blocks = nn.TransformerEncoder(block, 4, enable_nested_tensor=False)
            self.top = nn.Linear(32, 2)
            for layer in self.blocks.layers:  # sharp attention, as after training
                layer.self_attn.in_proj_weight.data *= 3
                layer.self_attn.out_proj.weight.data *= 3

        def forward(self, x):
            return self.top(self.blocks(x).mean(1))

    torch.manual_seed(0)
    model = Attending().eval()
    design, passes = InfoBottleneckAttribution(model).design, Passes(model, [])
    found = [
        _default_stages(passes, Batch((torch.randn(32, 20, 32),)), design) for _ in range(10)]
    assert {design.channel_axis for _, design in found} == {"last"}


def test_rows_that_were_examples_only_in_the_fit():
    """Time comes first in the layer; in the fit there were as many examples as times."""
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.turned, self.top = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.top(self.turned(x.transpose(0, 1)).mean(0))

    attr = LayerInfoBottleneckAttribution(TimeFirst(), "turned", channel_axis="last")
    x = torch.randn(8, 8, 3)
    with pytest.warns(UserWarning, match="do not follow an input"):
        attr.fit([x], 2, progress=False, bank_size=16)
    with pytest.raises(ValueError, match="'turned' returned 8 rows for 4 examples"):
        attr.attribute(x[:4], 0)
