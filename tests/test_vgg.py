"""The features: layers by name, each set of weights with its own convention, frozen whatever happens around them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stylemoments import gallery, vgg, zoo
from stylemoments.vgg import LAYERS, STYLE_LAYERS, VGGFeatures

IMAGES = torch.rand(2, 3, 37, 53, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def features():
    return VGGFeatures(weights="random")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty folder where torch.hub keeps its files, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def positions(convs=16) -> list[int]:
    """The place of each convolution in torchvision's sequence of convolutions, ReLUs and poolings."""
    found, place = [], 0
    for block in (2, 2, 4, 4, 4):
        for _ in range(block):
            found.append(place)
            place += 2
        place += 1
    return found[:convs]


# ------------------------------------------------------------------------------------- layers


def test_sixteen_layers_in_five_blocks():
    assert len(LAYERS) == 16
    assert LAYERS[0] == "relu1_1" and LAYERS[8] == "relu4_1" and LAYERS[-1] == "relu5_4"
    assert [vgg.channels(layer) for layer in STYLE_LAYERS] == [64, 128, 256, 512]
    assert vgg.channels("relu5_1") == 512, "the last two blocks are as wide as each other"


def test_shapes_halve_from_block_to_block(features):
    found = features(IMAGES)
    assert list(found) == list(STYLE_LAYERS) == list(features.layers)
    shapes = [tuple(x.shape) for x in found.values()]
    assert shapes == [(2, 16, 37, 53), (2, 32, 18, 26), (2, 64, 9, 13), (2, 128, 4, 6)]
    assert features.channels == {"relu1_1": 16, "relu2_1": 32, "relu3_1": 64, "relu4_1": 128}


def test_layers_come_in_the_order_of_the_network():
    features = VGGFeatures(["relu3_1", "relu1_2", "relu3_1"], weights="random")
    assert list(features(IMAGES)) == ["relu1_2", "relu3_1"]
    assert not hasattr(features.network, "conv3_2"), "what no layer needs is not there"


def test_against_plain_functions(features):
    """Worked out with conv2d, relu and max_pool2d alone, padding by hand."""
    state = features.network.state_dict()
    x = (IMAGES - torch.tensor(vgg.MEAN).view(3, 1, 1)) / torch.tensor(vgg.STD).view(3, 1, 1)
    for name in ("1_1", "1_2", "pool", "2_1"):
        if name == "pool":
            x = F.max_pool2d(x, 2)
            continue
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        x = F.conv2d(x, state[f"conv{name}.weight"], state[f"conv{name}.bias"]).relu()
    torch.testing.assert_close(features(IMAGES)["relu2_1"], x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [["relu9_9"], [], ["conv1_1"], "relu5_1"])
def test_unknown_layers_are_named(layers):
    with pytest.raises(ValueError, match="layers must be one or more of relu1_1"):
        VGGFeatures(layers, weights="random")


@pytest.mark.parametrize("options", [{"weights": "huge"}, {"padding": "wrap"}, {"pooling": "min"}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} (must be|is).*got.*{next(iter(options.values()))}"):
        VGGFeatures(**({"weights": "random"} | options))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 15, 32)])
def test_wrong_images_are_refused(features, shape):
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\).*at least 16"):
        features(torch.zeros(shape))


# ------------------------------------------------------------------------------------- frozen


def test_frozen_and_in_eval_mode_for_good(features):
    around = nn.Sequential(features).train()
    assert around.training and not features.training and not features.network.training
    assert not any(p.requires_grad for p in features.parameters())


def test_the_gradient_reaches_the_image(features):
    images = IMAGES.clone().requires_grad_()
    features(images)["relu4_1"].sum().backward()
    assert images.grad.abs().sum() > 0


def test_padding_and_pooling_change_what_they_should():
    plain, zeros, average = (
        VGGFeatures(["relu2_1"], weights="random", **options)(IMAGES)["relu2_1"]
        for options in ({}, {"padding": "zeros"}, {"pooling": "average"})
    )
    inside = (..., slice(3, -3), slice(3, -3))
    torch.testing.assert_close(plain[inside], zeros[inside], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain, zeros, atol=1e-2), "the border sees other padding"
    assert not torch.allclose(plain[inside], average[inside], atol=1e-2)


# ------------------------------------------------------------------------------------- weights


def test_the_shipped_weights_have_unit_means():
    """Each layer's mean activation over photographs is about one: layers count alike in a loss."""
    features = VGGFeatures(LAYERS[:9])
    photographs = [gallery.load(name, 128)[..., :128, :128] for name in gallery.names("photograph", "test")]
    means = [x.mean().item() for x in features(torch.cat(photographs)).values()]
    assert np.all(np.abs(np.array(means) - 1) < 0.4), means


def test_vgg19_against_torchvision(hub, monkeypatch):
    """The same random weights in torchvision's network give the same features."""
    from torchvision.models import vgg19

    torch.manual_seed(0)
    other = vgg19(weights=None).features.eval()
    state = {f"features.{name}": value for name, value in other.state_dict().items()}
    state["classifier.0.bias"] = torch.ones(1)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **options: state)
    found = VGGFeatures(["relu1_1", "relu3_3", "relu5_4"], weights="vgg19")(IMAGES)
    x = (IMAGES - torch.tensor(vgg.MEAN).view(3, 1, 1)) / torch.tensor(vgg.STD).view(3, 1, 1)
    places = dict(zip([p + 1 for p in positions()], LAYERS, strict=True))
    for place, layer in enumerate(other):
        x = layer(x)
        if places.get(place) in found:
            torch.testing.assert_close(found[places[place]], x, atol=1e-5, rtol=1e-5)


def test_vgg19_without_a_network_says_where_the_file_goes(hub):
    with pytest.raises(zoo.WeightsError) as error:
        VGGFeatures(weights="vgg19")
    for part in ("https://", str(hub / "vgg19-dcbb9e9d.pth"), "no network", 'weights="tiny"'):
        assert part in str(error.value)


def test_adain_weights_take_raw_rgb(hub):
    """The file of the PyTorch port: a 1 × 1 convolution first, padding layers between; here with known values."""
    with pytest.raises(zoo.WeightsError, match="vgg_normalised.pth"):
        VGGFeatures(weights="vgg19-adain")
    generator = torch.Generator().manual_seed(0)
    state = {"0.weight": torch.eye(3)[:, :, None, None].flip(0) * 255, "0.bias": torch.tensor([-103.9, -116.8, -123.7])}
    place, seen = 2, 3
    for layer in LAYERS:
        wide = vgg.channels(layer)
        state[f"{place}.weight"] = torch.randn(wide, seen, 3, 3, generator=generator) / (9 * seen) ** 0.5
        state[f"{place}.bias"] = torch.zeros(wide)
        place, seen = place + 3, wide
    torch.save(state, hub / "vgg_normalised.pth")
    features = VGGFeatures(["relu1_1"], weights="vgg19-adain")
    bgr = IMAGES.flip(1) * 255 + state["0.bias"].view(3, 1, 1)
    x = F.conv2d(F.pad(bgr, (1, 1, 1, 1), mode="reflect"), state["2.weight"]).relu()
    torch.testing.assert_close(features(IMAGES)["relu1_1"], x, atol=1e-3, rtol=1e-5)
    assert not any(p.requires_grad for p in features.parameters())
