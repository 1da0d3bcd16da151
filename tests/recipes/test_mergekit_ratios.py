"""mergekit configurations: the ratio of every tensor, worked out tensor by tensor in floating point."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from amatax.errors import RecipeError
from amatax.planning.ratios import plan_blocks, tensor_ratios
from amatax.recipes.mergekit import Known
from tests.recipes.mergekit_configs import KNOWN, LAYERS, MODEL, NAMES, imported


def value_of(setting: Any, name: str, t: float) -> float | None:
    if isinstance(setting, list) and any(isinstance(item, dict) for item in setting):
        fits = [item for item in setting if item.get("filter") is None or item["filter"] in name]
        return value_of(fits[0]["value"], name, t) if fits else None
    if isinstance(setting, list):
        position = t * (len(setting) - 1)
        i = min(int(position), len(setting) - 2) if len(setting) > 1 else 0
        return setting[i] + (position - i) * (setting[min(i + 1, len(setting) - 1)] - setting[i])
    return setting


def ratio_of(data: dict[str, Any], name: str) -> float:
    """The share of RLHF of a tensor in a linear merge."""
    layer = MODEL.places[name].layer
    parts = data.get("slices") or [{"sources": [{**m, "layer_range": [0, LAYERS]} for m in data["models"]]}]
    part, t = parts[0] if "embed" in name else parts[-1], 0.0
    for candidate in parts if layer is not None else ():
        first, end = candidate["sources"][0]["layer_range"]
        if first <= layer < end:
            part, t = candidate, (layer - first) / (end - first - 1) if end - first > 1 else 1.0
    weights = []
    for source in part["sources"]:
        scopes = [source.get("parameters", {}), part.get("parameters", {}), data.get("parameters", {})]
        found = (value_of(scope["weight"], name, t) for scope in scopes if "weight" in scope)
        weights.append(next(value for value in found if value is not None))
    return weights[1] / sum(weights)


NUMBERS = st.integers(1, 20).map(lambda n: n / 10)
GRADIENTS = st.one_of(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=4))
FILTERS = st.sampled_from(
    ["mlp", "self_attn", "q_proj", "proj", "norm", "lm_head", "embed", "layers.1", "model", "nothing"]
)
CHOICES = st.lists(st.fixed_dictionaries({"filter": FILTERS, "value": GRADIENTS}), min_size=1, max_size=3)
SETTINGS = st.one_of(GRADIENTS, CHOICES)


@st.composite
def linear_configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Weights in any scope; the whole has a number, so that every tensor has one."""

    def scope() -> dict[str, Any]:
        return draw(st.one_of(st.just({}), SETTINGS.map(lambda setting: {"weight": setting})))

    data: dict[str, Any] = {"merge_method": "linear", "parameters": {"weight": draw(GRADIENTS)}}
    names = ["acme/sft", "acme/rlhf"]
    cuts = sorted(draw(st.sets(st.integers(1, LAYERS - 1), max_size=2)))
    if draw(st.booleans()):
        data["models"] = [{"model": name, "parameters": scope()} for name in names]
        return data
    data["slices"] = [
        {"sources": [{"model": n, "layer_range": [a, b], "parameters": scope()} for n in names], "parameters": scope()}
        for a, b in zip([0, *cuts], [*cuts, LAYERS], strict=True)
    ]
    return data


@pytest.mark.parametrize("known", [KNOWN, Known(layers=LAYERS)])
@given(data=linear_configurations())
def test_every_tensor_has_mergekit_s_ratio(known: Known, data: dict[str, Any]) -> None:
    try:
        recipe = imported(yaml.safe_dump(data), known).recipe
    except (
        RecipeError
    ) as error:  # filters that no list of overrides orders, and where nothing is known, those of both ends
        assert "overlap in another order" in str(error) or (known is not KNOWN and "have the model" in str(error))
        return
    ratios = recipe.merge.resolved_ratios()
    assert ratios is not None
    blocks, faults = plan_blocks(recipe, ratios, LAYERS)
    assert not faults
    found, unused = tensor_ratios(recipe, ratios, MODEL, blocks, tied=False)
    assert known is not KNOWN or not unused
    assert found == pytest.approx({name: ratio_of(data, name) for name in NAMES}, abs=1e-14)


@given(setting=SETTINGS, last=NUMBERS)
def test_one_parameter_is_never_refused(setting: Any, last: float) -> None:
    text = yaml.safe_dump({"merge_method": "slerp", "base_model": "acme/sft", "models": [{"model": "acme/sft"}, {"model": "acme/rlhf"}],
                           "parameters": {"t": [*setting, {"value": last}] if isinstance(setting, list) and isinstance(setting[0], dict) else setting}})  # fmt: skip
    imported(text, KNOWN)
    imported(text, Known(layers=LAYERS))
