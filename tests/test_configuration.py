"""Configs and recipes: what is refused, what survives a round trip."""

import pytest
from huggingface_hub.errors import StrictDataclassError

from priorvla.configuration.configuration_action_prior import ActionPriorConfig
from priorvla.configuration.configuration_priorvla import PriorVLAConfig
from priorvla.configuration.recipe import checked_fields, list_recipes, load_recipe

BODY = {"embodiments": ["arm"], "action_dims": [4], "state_dims": [3]}


def test_backbone_layers_may_be_told_by_the_names_of_their_modules():
    layers = {**BODY, "expert_layers": ["vision"] * 3, "tap_layers": ["embed_tokens", "layers.2", 4]}
    config = PriorVLAConfig(fusion="joint", language=False, expert=layers, backbone_layers=4)
    assert config.expert.tap_layers == [0, 3, 4] and config.taps == (0, 3, 4)
    with pytest.raises(ValueError, match="tap_layers has 'norm': give a layer's number, or its name"):
        PriorVLAConfig(fusion="joint", language=False, expert={**layers, "tap_layers": [1, 2, "norm"]})


@pytest.mark.parametrize("config_class", [ActionPriorConfig, PriorVLAConfig])
def test_a_config_survives_saving_and_loading(config_class, tmp_path):
    config = config_class(expert={**BODY, "chunk_size": 6}, encoder={"states": "without"}, num_inference_steps=3)
    config.save_pretrained(tmp_path)
    loaded = config_class.from_pretrained(tmp_path)
    assert loaded.to_dict() == {**config.to_dict(), "_name_or_path": loaded.to_dict().get("_name_or_path", "")}
    assert loaded.expert.chunk_size == 6 and loaded.encoder.states == "without"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head_dim": 3}, "head_dim=3 must be even"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "must divide num_attention_heads=4"),
        ({"expert_layers": ["motion", "smell"]}, "'smell'"),
        ({"expert_layers": ["motion"], "tap_layers": [2]}, "a motion layer reads no backbone"),
        ({"context_tokens": ["latent", "history!"]}, "'history!'"),
        ({"embodiments": ["a", "a"], "action_dims": [1, 1], "state_dims": [1, 1]}, "repeat a name"),
        ({"action_dims": [4, 5]}, "1 embodiments, 2 action_dims"),
        ({"chunk_size": 0}, "chunk_size=0 must be at least 1"),
        ({"num_soft_tokens": 0}, "num_soft_tokens=0"),
    ],
)
def test_an_impossible_expert_is_refused_with_what_is_wrong(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        ActionPriorConfig(expert={**BODY, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"time_distribution": "cosine"}, "time_distribution='cosine'"),
        ({"scheduler": {"_class_name": "DDIMScheduler"}}, "DDIMScheduler"),
        ({"scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}}, "applies it twice"),
        ({"latent_dropout": 1.0}, "latent_dropout=1.0"),
        ({"latent_noise": -1.0}, "latent_noise=-1.0"),
        ({"expert": {**BODY, "context_tokens": ["soft"]}}, "no 'latent'"),
        ({"format_version": 99}, "update priorvla"),
    ],
)
def test_an_impossible_action_prior_is_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        ActionPriorConfig(**{"expert": BODY, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fusion": "telepathy"}, "fusion='telepathy'"),
        ({"use_history": True}, "needs the trajectory encoder"),
        ({"backbone": {"source": "hub", "name": "/home/me/vlm"}}, "never a path"),
        ({"backbone": {"source": "hub", "name": "C:/vlm"}}, "never a path"),
        ({"backbone": {"source": "hub", "name": ""}}, "name='' must be a Hub id"),
        ({"backbone": {"source": "hub"}}, "no 'name'"),
        ({"backbone": {"source": "ftp", "name": "a/b"}}, "source='ftp'"),
        ({"backbone": {"source": "hub", "name": "a/b", "path": "x"}}, "unknown key 'path'"),
        ({"expert": {**BODY, "expert_layers": ["vision"], "tap_layers": [3]}}, "fusion='latent'"),
    ],
)
def test_an_impossible_vla_is_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        PriorVLAConfig(**{"expert": BODY, **fields})


def test_the_backbone_argument_of_from_pretrained_does_not_reach_the_config_field(tmp_path):
    reference = {"source": "hub", "name": "a/b"}
    PriorVLAConfig(expert=BODY, backbone=reference).save_pretrained(tmp_path)
    config, unused = PriorVLAConfig.from_pretrained(tmp_path, backbone="elsewhere", return_unused_kwargs=True)
    assert config.backbone == reference
    assert unused["backbone"] == "elsewhere"


def test_a_misspelled_field_names_its_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"model.expert: 'hiden_size' is unknown, did you mean 'hidden_size'"):
        checked_fields(ActionPriorConfig, {"expert": {"hiden_size": 3}}, "model")


@pytest.mark.parametrize(("text", "message"), [("- a\n- b\n", "mapping of options"), ("a: [", "not valid YAML")])
def test_a_recipe_that_is_no_mapping_is_refused_by_name(tmp_path, text, message):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"recipe\.yaml.*{message}"):
        load_recipe(file)


def test_a_recipe_that_does_not_exist_names_those_that_do():
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_recipe("nowhere")


def test_every_shipped_recipe_can_be_read():
    for name in list_recipes():
        assert load_recipe(name)
