"""Names of modules in memory, found among the files' names: wrappers may differ, the module may not."""

from __future__ import annotations

import pytest

from amatax.checkpoints.matching import DiskNames

Q = "self_attn.q_proj.weight"
FOUND = {  # in memory -> on disk
    f"model.layers.1.{Q}": f"layers.1.{Q}",
    f"transformer.h.1.{Q}": f"h.1.{Q}",
    f"model.language_model.layers.1.{Q}": f"language_model.model.layers.1.{Q}",
    f"model.language_model.layers.2.{Q}": f"model.layers.2.{Q}",
    f"model.vision_tower.encoder.layers.1.{Q}": f"vision_tower.encoder.layers.1.{Q}",
    "model.language_model.embed_tokens.weight": "language_model.model.embed_tokens.weight",
    "model.visual.merger.linear_fc1.weight": "visual.merger.linear_fc1.weight",
    "lm_head.weight": "language_model.lm_head.weight",
}
OTHERS = {  # in memory -> another module's, on disk
    f"model.encoder.layers.5.{Q}": f"model.decoder.layers.5.{Q}",
    f"model.vision_tower.encoder.layers.1.{Q}": f"model.layers.1.{Q}",
    f"model.layers.3.{Q}": f"model.vision_tower.layers.3.{Q}",
    f"model.language_model.layers.1.{Q}": f"model.text_model.layers.1.{Q}",
    f"model.layers.1.mlp.experts.2.{Q}": f"model.layers.0.mlp.experts.2.{Q}",
    f"model.layers.1.{Q}": f"model.layers.1.model.{Q}",
    "model.vision_tower.norm.weight": "model.norm.weight",
    "model.norm.weight": "model.vision_tower.norm.weight",
    "model.visual.merger.linear_fc1.weight": "model.visual.deepstack_merger.linear_fc1.weight",
    "model.encoder.embed_tokens.weight": "model.decoder.embed_tokens.weight",
}


@pytest.mark.parametrize("name", FOUND)
def test_other_wrappers(name: str) -> None:
    assert DiskNames([FOUND[name], "model.other.weight"]).find(name) == [FOUND[name]]


@pytest.mark.parametrize("name", OTHERS)
def test_another_module(name: str) -> None:
    assert DiskNames([OTHERS[name]]).find(name) == []


def test_two_that_fit_alike() -> None:
    names = ["model.layers.0.up_proj.weight", "backbone.layers.0.up_proj.weight"]
    assert DiskNames(names).find("layers.0.up_proj.weight") == names
