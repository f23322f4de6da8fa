"""MiniMindConfig: transformers' names, upstream's names as aliases, refused contradictions."""

import pytest
import torch

from minimind_trl.models import PRESETS, MiniMindConfig, MiniMindForCausalLM

PARAMETERS = {
    "minimind2-small": 25_829_888,
    "minimind2": 104_030_976,
    "minimind2-moe": 145_029_760,
    "minimind3": 63_912_192,
    "minimind3-moe": 198_416_640,
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_upstreams_parameter_counts(preset):
    with torch.device("meta"):
        model = MiniMindForCausalLM(MiniMindConfig.from_preset(preset))
    assert model.num_parameters() == PARAMETERS.get(preset, model.num_parameters())
    assert preset != "tiny" or 0.9e6 < model.num_parameters() < 1.1e6


def test_unknown_preset_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match=r"'minimind4' is unknown; choose one of nano, tiny, tiny-short, minimind2"):
        MiniMindConfig.from_preset("minimind4")


def test_keys_of_a_minimind2_config_are_aliases():
    old = MiniMindConfig(
        use_moe=True, n_routed_experts=8, n_shared_experts=2, aux_loss_alpha=0.01, seq_aux=True, scoring_func="softmax"
    )
    assert (old.num_experts, old.n_shared_experts, old.num_experts_per_tok) == (8, 2, 2)
    assert (old.router_aux_loss_coef, old.router_aux_loss_type) == (0.01, "sequence")
    assert (old.use_qk_norm, old.num_key_value_heads, old.rms_norm_eps) == (False, 2, 1e-5)
    assert old.n_routed_experts == 8 and old.use_moe  # readable under the old names, too


def test_a_dense_upstream_config_lists_experts_that_it_does_not_use():
    config = MiniMindConfig(use_moe=False, num_experts=4, num_experts_per_tok=1, router_aux_loss_coef=5e-4)
    assert config.num_experts == 0
    # TRL treats a config with it as a mixture of experts
    assert not hasattr(config, "output_router_logits") and config.num_experts_per_tok is None


def test_inference_rope_scaling_is_upstreams_yarn():
    rope = MiniMindConfig(inference_rope_scaling=True, rope_theta=1e6).rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("yarn", 16.0, 2048)
    assert MiniMindConfig().rope_parameters == {"rope_type": "default", "rope_theta": 1e6}


def test_the_callers_rope_dictionary_is_left_alone():
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    MiniMindConfig(rope_scaling=scaling)
    assert scaling == {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}


def test_saving_and_loading_keeps_every_field(tmp_path, kind):
    from tests.conftest import small_config

    config = small_config(kind)
    config.save_pretrained(tmp_path)
    assert MiniMindConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "num_attention_heads=6 must be a multiple of"),
        ({"num_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok=3 must lie between 1 and num_experts=2"),
        ({"num_experts": 4, "num_experts_per_tok": 0}, "num_experts_per_tok=0 must lie between"),
        ({"num_experts": -1}, "num_experts=-1 must be 0"),
        ({"hidden_size": 100, "num_attention_heads": 8}, "hidden_size=100 must be a multiple of"),
        ({"head_dim": 15}, "head_dim=15 must be even"),
        ({"head_dim": -2}, "head_dim=-2 must be at least 1"),
        ({"hidden_act": "sulu"}, "hidden_act='sulu' is not an activation"),
        (
            {"rope_scaling": {"rope_type": "yearn", "factor": 2.0}},
            "rope_type='yearn' is unknown; choose one of",
        ),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 must be at least 1"),
        ({"use_moe": True, "n_routed_experts": 4, "num_experts": 8}, "n_routed_experts=4 contradicts num_experts=8"),
        ({"scoring_func": "sigmoid"}, "scoring_func='sigmoid' is not supported"),
        ({"dropout": 0.1}, "dropout=0.1"),
        ({"output_router_logits": True}, "output_router_logits=True needs experts"),
        ({"family": "minimind9"}, "family 'minimind9' is unknown"),
        (
            {"inference_rope_scaling": False, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "inference_rope_scaling=False contradicts",
        ),
        (
            {"inference_rope_scaling": True, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "inference_rope_scaling=True contradicts a rope_scaling of type 'linear'",
        ),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MiniMindConfig(**fields)


def test_one_error_lists_all_contradictions():
    with pytest.raises(ValueError, match=r"num_key_value_heads=4.*num_experts_per_tok=9"):
        MiniMindConfig(num_attention_heads=6, num_key_value_heads=4, head_dim=64, num_experts=2, num_experts_per_tok=9)
