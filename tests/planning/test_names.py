"""The name rule on the prefixes seen in real checkpoints."""

from __future__ import annotations

import pytest

from amatax.planning.names import Place, anatomy

PREFIXES = [
    "model.layers",
    "model.language_model.layers",
    "language_model.model.layers",
    "transformer.h",
    "transformer.blocks",
    "gpt_neox.layers",
    "model.decoder.layers",
    "backbone.layers",
    "bert.encoder.layer",
    "transformer.encoder.layers",
    "h",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_backbone_is_found_under_every_prefix(prefix: str) -> None:
    names = [
        f"{prefix}.{i}.{part}.weight"
        for i in range(5)
        for part in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    ]
    model = anatomy([*names, "lm_head.weight", "model.norm.weight"], {"num_hidden_layers": 5})
    assert (model.layers, model.backbone) == (5, (prefix,))
    assert model.places[f"{prefix}.3.self_attn.q_proj.weight"] == Place(3, "attention")
    assert model.places[f"{prefix}.4.mlp.up_proj.weight"] == Place(4, "mlp")
    assert model.places[f"{prefix}.0.input_layernorm.weight"] == Place(0, "norm")
    assert model.places["lm_head.weight"] == Place(None, "head")
    assert model.places["model.norm.weight"] == Place(None, "norm")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("model.layers.0.self_attn.o_proj.bias", "attention"),
        ("model.layers.0.block_sparse_moe.experts.3.w1.weight", "mlp"),
        ("model.layers.0.block_sparse_moe.gate.weight", "mlp"),
        ("model.layers.0.mlp.experts.gate_up_proj", "mlp"),
        ("model.layers.0.mamba.A_log", "layer"),
        ("model.layers.0.mixer.norm.weight", "norm"),
        ("model.layers.0.attn.c_attn.weight", "attention"),
        ("model.layers.0.mlp.c_proj.weight", "mlp"),
        ("model.layers.0.fc1.bias", "mlp"),
        ("model.layers.0.attention.output.dense.weight", "attention"),
        ("model.layers.0.output.dense.weight", "mlp"),
        ("model.layers.0.ln_1.bias", "norm"),
        ("model.layers.0.ln_attn.weight", "norm"),
        ("model.layers.0.self_attn_layer_norm.weight", "norm"),
    ],
)
def test_kinds_in_a_layer(name: str, kind: str) -> None:
    assert anatomy([name], {"num_hidden_layers": 1}).places[name] == Place(0, kind)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("transformer.wte.weight", "embedding"),
        ("transformer.wpe.weight", "embedding"),
        ("shared.weight", "embedding"),
        ("transformer.word_embeddings.weight", "embedding"),
        ("transformer.word_embeddings_layernorm.weight", "norm"),
        ("transformer.ln_f.bias", "norm"),
        ("embed_out.weight", "head"),
        ("output.weight", "head"),
        ("score.weight", "head"),
        ("cls.predictions.decoder.bias", "head"),
        ("v_head.summary.weight", "other"),
        ("model.image_newline", "other"),
        ("multi_modal_projector.linear_1.weight", "other"),
    ],
)
def test_kinds_outside(name: str, kind: str) -> None:
    assert anatomy([name, "h.0.mlp.weight"], {"n_layer": 1}).places[name] == Place(None, kind)


def test_a_vision_tower_with_as_many_layers_is_not_the_backbone() -> None:
    tower = [f"vision_tower.vision_model.encoder.layers.{i}.mlp.fc{j}.weight" for i in range(4) for j in (1, 2)]
    text = [f"language_model.model.layers.{i}.mlp.up_proj.weight" for i in range(4)]
    model = anatomy(
        [*tower, *text], {"vision_config": {"num_hidden_layers": 4}, "text_config": {"num_hidden_layers": 4}}
    )
    assert model.backbone == ("language_model.model.layers",)
    assert all(model.places[name] == Place(None, "other") for name in tower)


def test_a_layer_beyond_the_backbone_is_other() -> None:
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(5)]
    model = anatomy(names, {"num_hidden_layers": 4})
    assert model.places[names[4]] == Place(None, "other")
    assert model.layers == 4


def test_encoder_layers_come_first() -> None:
    names = [f"{side}.block.{i}.layer.0.SelfAttention.q.weight" for side in ("decoder", "encoder") for i in range(3)]
    config = {"is_encoder_decoder": True, "num_layers": 3, "num_decoder_layers": 3}
    model = anatomy(names, config)
    assert model.layers == 6
    assert model.places["encoder.block.2.layer.0.SelfAttention.q.weight"].layer == 2
    assert model.places["decoder.block.0.layer.0.SelfAttention.q.weight"].layer == 3


def test_experts_fall_inside_a_layer_even_when_there_are_more_of_them() -> None:
    names = [f"model.layers.{i}.mlp.experts.{e}.w1.weight" for i in range(2) for e in range(2)]
    model = anatomy(names, {"num_hidden_layers": 2})
    assert {place.layer for place in model.places.values()} == {0, 1}
