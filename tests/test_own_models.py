"""Models of libraries by name, layer groups by hand, heads for other classes, and what is put right in a model."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import build, library, sequential
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import domain
from torch import nn

from lepton_rl import Domain, InputError, adapt, named_models, pretrain
from lepton_rl.apply import ApplyConfig, apply
from lepton_rl.cli import main
from lepton_rl.loading import load_model, untrained_model
from lepton_rl.model_check import check_model
from lepton_rl.own import own_task
from lepton_rl.preprocessing import Preprocessing, predict
from lepton_rl.stages import find_stages, stages_by_hand
from lepton_rl.task_adapter import fitted_head, with_head

SIDE = 8


def images(seed, n, classes=3, labelled=True, channels=3):
    return domain(seed, n, classes, labelled=labelled, side=SIDE, channels=channels)


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# ----- names


def test_a_network_of_timm_takes_weights_from_a_file_and_never_from_elsewhere(tmp_path):
    timm = library("timm")
    with pytest.raises(InputError, match=r"'timm:test_resnet' comes without weights, as none are fetched"):
        load_model("timm:test_resnet")
    made = timm.create_model("test_resnet", pretrained=False, num_classes=7)
    save_file(made.state_dict(), tmp_path / "w.safetensors")
    loaded = load_model("timm:test_resnet", tmp_path / "w.safetensors")  # which has 1000 outputs by default
    assert unchanged(loaded, made.state_dict())
    assert loaded(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert named_models.find_named("timm:test_resnet").expected.size == (160, 160)


def test_weights_that_differ_in_more_than_the_head_are_refused(tmp_path):
    library("timm")
    state = state_of(untrained_model("timm:test_resnet"))
    state["fc.weight"], state["fc.bias"] = torch.zeros(4, 96), torch.zeros(4)
    state["conv1.0.weight"] = torch.zeros(1, 1, 3, 3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"have another shape of '(conv1\.0|fc)\.weight'"):
        load_model("timm:test_resnet", tmp_path / "w.safetensors")


def test_torchvision_states_its_images_and_builds_the_same_weights_every_time():
    library("torchvision")
    expected = named_models.find_named("torchvision:squeezenet1_1").expected
    assert (expected.size, expected.mean) == ((224, 224), (0.485, 0.456, 0.406))
    before = torch.get_rng_state()
    one, other = untrained_model("torchvision:squeezenet1_1"), untrained_model("torchvision:squeezenet1_1")
    assert unchanged(one, other.state_dict())
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def hugging_face(tmp_path):
    """A folder as `save_pretrained` writes it."""
    transformers = library("transformers")
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 4, 8, 8], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    config = transformers.AutoConfig.for_model("resnet", num_labels=3, **sizes)
    model = transformers.AutoModelForImageClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / "hf")
    facts = {"size": {"shortest_edge": 32}, "image_mean": [0.5, 0.25, 0.5], "image_std": [0.5, 0.5, 0.25]}
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(facts))
    return model, tmp_path / "hf"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_hugging_face_folder_is_read_with_its_weights_and_its_logits_are_used(hugging_face):
    model, folder = hugging_face
    found = named_models.find_named(f"hf:{folder}")
    assert (found.expected.size, found.expected.std) == ((32, 32), (0.5, 0.5, 0.25))
    loaded = load_model(f"hf:{folder}")
    assert unchanged(loaded, model.state_dict())
    facts = check_model(loaded, 3, 32, 32)
    assert facts.n_classes == 3
    assert facts.notes == (
        "model ResNetForImageClassification returns ImageClassifierOutputWithNoAttention: its logits are used",
    )
    target = domain(1, 12, 3, side=32, channels=3).without_labels()
    result = adapt(loaded, target=target, policy="tuned-default", budget=5)
    assert type(result.model) is type(loaded)
    assert result.notes == facts.notes
    assert result.predict(target).shape == (12,)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_damaged_hugging_face_folder_is_refused_in_one_line(hugging_face):
    _, folder = hugging_face
    state = load_file(folder / "model.safetensors")
    del state["classifier.1.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights for 'classifier\.1\.weight'"):
        load_model(f"hf:{folder}")
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="cannot be built") as caught:
        load_model(f"hf:{folder}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet1", r"'timm:resnet1' is unknown to the library: expected one of its \d+, near: resnet18"),
        ("timm:hf-hub:timm/resnet18.a1_in1k", "is unknown to the library"),
        ("torchvision:resnet19", "near: resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "is unknown to the library"),
        ("hf:resne", r"is not on this machine \(near: resnet, regnet\).*nothing is fetched here"),
        ("hf:someone/something", "is not on this machine"),
    ],
)
def test_unknown_names_are_answered_with_near_ones(name, message):
    library({"timm": "timm", "torchvision": "torchvision", "hf": "transformers"}[name.partition(":")[0]])
    with pytest.raises(InputError, match=message) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [ImportError("no module"), RuntimeError("operator does not exist"), OSError("lib.so")]
)
@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_a_library_that_is_missing_or_broken_is_told_in_one_line(name, error, monkeypatch, capsys):
    def fail(_):
        raise error

    monkeypatch.setattr(named_models.importlib, "import_module", fail)
    with pytest.raises(
        InputError, match=rf"needs torchvision, which cannot be imported \({error}\).*lepton_rl\[models\]"
    ):
        load_model(name)


def test_a_named_model_without_weights_is_trained_on_the_source_first(tmp_path, monkeypatch):
    library("timm")
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lepton_rl.pretrain.BATCH", 8)
    trained = []

    def train(model, source, steps, seed, rate):
        trained.append(steps)
        inner(model, source, 2, seed, rate)

    inner = pretrain._train
    monkeypatch.setattr(pretrain, "_train", train)
    for name, seed in (("source", 1), ("target", 2)):
        part = images(seed, 18)
        for i, label in enumerate(part.labels):
            path = tmp_path / name / f"c{label}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(part.images[i].transpose(1, 2, 0)).save(path)
    said = []
    config = ApplyConfig(
        model="timm:test_resnet",
        source=str(tmp_path / "source"),
        target=str(tmp_path / "target"),
        image_size=16,
        budget=5,
        policy="tuned-default",
        out=tmp_path / "out",
    )
    result = apply(config, say=said.append)
    assert result.classes == ("c0", "c1", "c2")
    assert said[0] == "training timm:test_resnet on 15 labelled images of source, as no --weights are given"
    assert result.previous_head is None
    apply(replace(config, overwrite=True))
    assert trained == [300]  # the second time from the cache
    # The weights go back in by name, and with them the head for three classes.
    again = load_model("timm:test_resnet", tmp_path / "out" / "weights.safetensors")
    assert unchanged(again, result.model.state_dict())


# ----- layer groups by hand


def test_groups_by_hand_are_counted_from_the_head():
    model = sequential(3)
    plan = stages_by_hand(model, [["0", "1"], ["4", "5", "8", "9"]])
    assert plan.stages == ((), (), ("0", "1"), ("4", "5", "8", "9"))
    assert plan.head == "18"
    assert plan.group_of("12.weight") == 0  # what no group claims trains last
    task, _ = own_task(model, target=images(1, 9), stages=[["0"], ["4"], ["8"], ["12"]])
    assert task.visible.plan.stages == (("0",), ("4",), ("8",), ("12",))


class TwoHeads(nn.Module):
    """The last linear layer is not the classifier."""

    def __init__(self):
        super().__init__()
        self.body = sequential(3)
        self.spare = nn.Linear(3, 3)

    def forward(self, x):
        return self.body(x)


def test_a_head_can_be_named():
    with pytest.raises(InputError, match=r"'spare' takes no part.*or give head"):
        own_task(TwoHeads(), target=images(1, 9))
    task, _ = own_task(TwoHeads(), target=images(1, 9), head="body.18")
    assert task.visible.plan.head == "body.18"
    assert adapt(TwoHeads(), target=images(1, 9), head="body.18", policy="tuned-default", budget=5).steps == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": [["0"], ["nothing"]]}, "stages name 'nothing', which is no module with weights"),
        ({"stages": [["0"], ["2"]]}, "stages name '2', which is no module with weights"),
        ({"stages": [["0"], ["0"]]}, "stages name '0' beside '0'"),
        ({"stages": [["18"]]}, "stages name '18' beside '18'.*the head in none"),
        ({"stages": [[""]]}, "no module with weights"),
        ({"stages": [["0"]] * 5}, "stages are 5 groups: expected 1 to 4"),
        ({"head": "0"}, r"head '0' is no nn\.Linear of the model: expected one of '18'"),
        ({"head": "fc"}, "head 'fc' is no"),
    ],
)
def test_faulty_groups_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        own_task(sequential(3), target=images(1, 9), **arguments)


def test_inspect_shows_the_groups_of_a_library_model(capsys):
    library("timm")
    assert main(["inspect", "timm:test_resnet"]) == 0
    shown = capsys.readouterr().out
    assert "images 160x160, mean 0.500, 0.500, 0.500" in shown
    assert "layer4" in shown
    assert main(["inspect", "timm:test_resnet", "--stages", "layer1,layer2", "layer3", "--head", "fc"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["stage", "3", "layer1,", "layer2"] in [row[:4] for row in rows]


# ----- other classes


def shapes_by_hand():
    """Images whose first pixel tells the class, and a network that passes it on as the first feature."""
    values = np.repeat([0, 100, 200], 10).astype(np.uint8)
    pixels = np.zeros((30, 1, 2, 2), np.uint8)
    pixels[:, 0, 0, 0] = values
    source = Domain.from_arrays(pixels, np.repeat([0, 1, 2], 10), name="s", classes=("low", "mid", "high"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 7))
    model[1].weight.data, model[1].bias.data = torch.eye(4), torch.zeros(4)
    return source, model.eval(), Preprocessing(channels=1, height=2, width=2, mean=(0.0,), std=(1.0,))


def test_a_fitted_head_tells_the_classes_apart_and_leaves_the_model_alone():
    source, model, way = shapes_by_hand()
    state = state_of(model)
    head = fitted_head(model, "2", source, way)
    assert (head.in_features, head.out_features) == (4, 3)
    renewed = with_head(model, "2", head)
    assert predict(renewed, source, way).tolist() == source.labels.tolist()
    assert unchanged(model, state)
    back = with_head(renewed, "2", model[2])
    assert unchanged(back, state)


@pytest.mark.parametrize("kept", [(0, 1), (0, 2), (1, 2)])
def test_a_class_without_an_image_is_never_likely(kept):
    source, model, way = shapes_by_hand()
    part = source.take(np.isin(source.labels, kept))
    head = fitted_head(model, "2", part, way)
    assert predict(with_head(model, "2", head), part, way).tolist() == part.labels.tolist()
    (absent,) = {0, 1, 2} - set(kept)
    assert head.weight[absent].tolist() == [0, 0, 0, 0]
    assert float(head.bias[absent].detach()) == pytest.approx(-np.log(21))


def test_another_class_count_gets_a_new_head_and_the_old_one_can_be_put_back(tmp_path):
    model = sequential(5).eval()
    state = state_of(model)
    result = adapt(
        model, source=images(1, 30), target=images(2, 24), policy="tuned-default", budget=5, out=tmp_path / "out"
    )
    assert result.classes == ("0", "1", "2")
    assert any(note.startswith("the model had 5 outputs: it got a new head for 3 classes") for note in result.notes)
    assert result.model[18].out_features == 3
    assert unchanged(model, state)
    old = with_head(result.model, "18", result.previous_head)
    assert torch.equal(old[18].weight, state["18.weight"])
    assert old(torch.zeros(1, 3, SIDE, SIDE)).shape == (1, 5)
    assert torch.equal(load_file(tmp_path / "out" / "previous_head.safetensors")["weight"], state["18.weight"])
    assert json.loads((tmp_path / "out" / "result.json").read_text())["notes"] == list(result.notes)


def test_when_a_new_head_is_made(tmp_path):
    model, source, target = sequential(5), images(1, 30), images(2, 24)

    def outputs(**arguments):
        return own_task(model, target=target, **arguments)[0].visible.n_classes

    assert outputs(source=source) == 3
    assert outputs(source=source, classes=tuple("01234")) == 5  # these name the model's outputs
    assert outputs(source=source, classes=tuple("0123"), new_head="always") == 4
    assert outputs(new_head="always") == 3  # fitted on the labelled target images
    with pytest.raises(InputError, match="the model has 5 outputs but the source knows 3 classes"):
        outputs(source=source, new_head="never")
    with pytest.raises(InputError, match=r"without a source, knows 3 classes.*or ask for a new head"):
        outputs()
    with pytest.raises(InputError, match="new_head 'yes' is unknown"):
        outputs(new_head="yes")
    with pytest.raises(InputError, match="needs labelled images of at least 2 of them"):
        own_task(model, target=target.without_labels(), classes=("a", "b"), new_head="always")
    with pytest.raises(InputError, match="no class is known"):
        own_task(model, target=replace(target.without_labels(), classes=()), new_head="always")


# ----- what is put right, and what is said


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_trained_in_full_and_given_back_in_half(kind):
    model = sequential(3).to(kind).eval()
    state = state_of(model)
    result = adapt(model, source=images(1, 30), target=images(2, 24), policy="tuned-default", budget=5)
    assert unchanged(model, state)
    assert {p.dtype for p in result.model.parameters()} == {kind}
    assert result.predict(images(3, 5)).shape == (5,)
    assert any("a copy is trained in float32" in note for note in result.notes)


class Uncopyable(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = sequential(3)
        self.kept = self.net[0].weight * 2  # not a leaf: torch refuses to copy it

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Uncopyable(), "cannot be copied"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "has no shape yet"),
        (sequential(3).to("meta"), "is on the meta device"),
    ],
)
def test_models_that_cannot_be_tried_are_refused(model, message):
    with pytest.raises(InputError, match=message) as caught:
        own_task(model, target=images(1, 9))
    assert "\n" not in str(caught.value)


def test_what_is_odd_about_the_images_is_said():
    source, target = images(1, 30), images(2, 24)
    lacking = replace(source, labels=np.where(source.labels == 2, -1, source.labels))
    few = target.take([0, 0, 1, 2, 3, 4, 5])
    few = replace(few, labels=np.array([0, 1, 0, 0, 1, 1, 0]))
    test = target.take([0, 1, 20])
    task, _ = own_task(sequential(3), source=lacking, target=few, test=test, seed=3)
    assert task.notes[:3] == (
        "the source has no labelled image of '2'",
        "the target has no labelled image of '2'",
        "1 images are in the target with two labels, of which one must be wrong",
    )
    support = {image.tobytes() for image in task.visible.target_support.images}
    shared = sum(image.tobytes() in support for image in test.images)
    assert shared > 0
    assert task.notes[3] == f"{shared} of 3 test images are also in the labelled target images: test figures flatter"


def test_a_class_with_one_image_and_classes_in_another_order_go_through():
    source, target = images(1, 30), images(2, 24)
    keep = [*np.flatnonzero(source.labels != 2).tolist(), int(np.flatnonzero(source.labels == 2)[0])]
    turned = replace(target, classes=("2", "0", "1"), labels=(target.labels + 1) % 3)
    result = adapt(sequential(3), source=source.take(keep), target=turned, policy="tuned-default", budget=5)
    assert result.classes == ("0", "1", "2")
    straight = adapt(sequential(3), source=source.take(keep), target=target, policy="tuned-default", budget=5)
    assert result.before.keys() == straight.before.keys()


def test_trying_and_adapting_leave_training_mode_and_gradients_of_the_original():
    model = build("sequential", 3).train()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    adapt(model, source=images(1, 30), target=images(2, 24), policy="tuned-default", budget=5)
    assert model.training
    assert [p.requires_grad for p in model[0].parameters()] == [False]
    assert unchanged(model, before)
    assert "forward" not in vars(model[0])
    assert find_stages(model).head == "18"
