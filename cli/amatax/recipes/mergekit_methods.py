"""mergekit's weights as a share of RLHF and a method with its options, where that is the same computation; else why it is not.

With weights v and w of the changes d and e, mergekit adds lambda * (v d + w e) to the base, or that divided by v + w (`normalize`).
A recipe adds scale * ((1 - r) d + r e): r = w / (v + w), and scale is lambda (v + w), or lambda. With the sign election the sum is over
the agreeing changes, and a recipe always divides by the sum of their weights. Read off mergekit 0.1.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from amatax.recipes.mergekit_parameters import METHODS, Value

Shared = Mapping[str, Value]
Each = Mapping[str, Mapping[str, Value]]
OPTIONS = {
    "average": (),
    "slerp": (),
    "model_stock": (),
    "task_arithmetic": ("scale",),
    "ties": ("density", "scale"),
    "dare": ("density", "rescale", "scale"),
    "dare_ties": ("density", "rescale", "scale"),
    "breadcrumbs": ("density", "gamma", "scale"),
    "della": ("density", "epsilon", "rescale", "scale"),
}
ELECTING = ("ties", "dare_ties", "della")  # of amatax's


class Pair(NamedTuple):
    """The two models between which the ratios lie, by name; `sft` is the base where one tuned model is all there is."""

    sft: str
    rlhf: str
    alone: bool = False


@dataclass(frozen=True)
class Blend:
    """What one tensor gets: the share of RLHF and the method's options."""

    ratio: Fraction
    options: tuple[tuple[str, Value], ...] = ()


class Unsayable(Exception):
    """Why a tensor's merge is none that a recipe can say.

    Args:
        parameter: whose line is shown.
        message: what and why; how many layers have it is added.
        hint: the nearest that can be said.
    """

    def __init__(self, parameter: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.parameter, self.message, self.hint = parameter, message, hint


def method_of(mergekit: str, pair: Pair) -> str:
    """The method of the recipe. One change alone needs no sign election, and with the base as SFT is an average.

    Raises:
        Unsayable: if there is none.
    """
    names = {"linear": "average", "dare_linear": "dare"}
    if pair.alone:
        names |= {
            "task_arithmetic": "average",
            "dare_ties": "dare",
            "breadcrumbs_ties": "breadcrumbs",
            "della_linear": "della",
        }
    if mergekit == "breadcrumbs_ties" and not pair.alone:
        message = (
            "`breadcrumbs_ties` cannot be said in a recipe: `breadcrumbs` sums both changes up, without a sign election"
        )
        raise Unsayable(
            "merge_method",
            message,
            "the nearest: `merge_method: breadcrumbs`, or `merge_method: ties`, whose density drops the small changes alone",
        )
    if mergekit == "della_linear" and not pair.alone:
        message = "`della_linear` cannot be said in a recipe: `della` always elects signs"
        raise Unsayable("merge_method", message, "the nearest: `merge_method: della` with `normalize: true`")
    if mergekit == "model_stock" and pair.alone:
        message = "`model_stock` of one tuned model has no angle between two changes"
        raise Unsayable("merge_method", message, "mergekit refuses this too")
    return names.get(mergekit, mergekit)


def blend(mergekit: str, pair: Pair, base: str | None, shared: Shared, each: Each) -> Blend:
    """A tensor's share of RLHF and options.

    Args:
        mergekit: mergekit's method.
        pair: the two models.
        base: mergekit's base model.
        shared: the values of the parameters that are looked up once.
        each: by model, those of the parameters that are looked up for each; a model that is not there has no part in the tensor.

    Raises:
        Unsayable, or a group of them: if no recipe says that.
    """
    if mergekit == "slerp":
        t = Fraction(shared["t"])
        return Blend(1 - t if base == pair.rlhf else t)
    if mergekit == "model_stock":
        return Blend(_stock(pair, bool(shared["filter_wise"])))
    v, w = (Fraction(each.get(model, {}).get("weight", 0)) for model in pair[:2])
    if mergekit == "linear":
        return Blend(_linear(v, w, bool(shared["normalize"])))
    method = method_of(mergekit, pair)
    changes = [own for model, own in each.items() if model != base]
    taking_part = [own for own in changes if own["weight"]] or changes
    options: dict[str, Value] = {}
    wrong = []
    try:
        ratio, options["scale"] = _delta(METHODS[mergekit].elects, method, pair.alone, v, w, shared)
    except Unsayable as why:
        wrong.append(why)
    for name in OPTIONS[method]:
        try:
            if name in ("density", "gamma", "epsilon"):
                options[name] = _one_of(name, [Fraction(own[name]) for own in taking_part])
            elif name == "rescale":
                options[name] = bool(shared[name])
        except Unsayable as why:
            wrong.append(why)
    if wrong:
        raise ExceptionGroup("no recipe says this", wrong)
    _check_drops(mergekit, options, shared)
    return Blend(ratio, tuple((name, options[name]) for name in OPTIONS[method]))


def _stock(pair: Pair, filter_wise: bool) -> Fraction:
    method_of("model_stock", pair)
    if filter_wise:
        message = "`filter_wise` takes the angle of every row: a recipe takes that of the tensor"
        raise Unsayable("filter_wise", message, "leave it out")
    return Fraction(1, 2)


def _linear(v: Fraction, w: Fraction, normalize: bool) -> Fraction:
    total = v + w
    if total == 0 and normalize:
        raise Unsayable("weight", "the weights sum to 0, and mergekit divides by that", "mend the weights")
    if total != 1 and not normalize:
        message = (
            f"the weights sum to {float(total):g} and are not normalised: all weights of the model would be scaled"
        )
        raise Unsayable("weight", message, "leave out `normalize: false`, or let them sum to 1")
    return w / total


def _delta(
    elects: bool, method: str, alone: bool, v: Fraction, w: Fraction, shared: Shared
) -> tuple[Fraction, Fraction]:
    """(ratio, scale) of a method that merges changes."""
    normalize, factor, total = bool(shared["normalize"]), Fraction(shared["lambda"]), v + w
    if alone:
        part = Fraction(w != 0) if normalize else w
        if method == "average":
            return factor * part, Fraction(1)
        if method not in ELECTING:
            return part, factor
        if w == 0:
            raise Unsayable("weight", "the weight is 0: `ratios` cannot leave the base there", "give it a weight")
        return Fraction(1), factor * part
    if v == w == 0:
        message = "both weights are 0: that is the base, and ratios are between the two others"
        raise Unsayable("weight", message, "give one of them a weight")
    if elects and not normalize and v != 0 != w:
        message = (
            "`normalize` is false: the agreeing changes are summed up and not divided by their weights' sum; "
            "a recipe takes their mean"
        )
        hint = "the nearest: `normalize: true` in `parameters`: where one model alone agrees its change counts in full"
        raise Unsayable("normalize", message, hint)
    if total == 0:
        message = "the weights sum to 0: no share of RLHF with any scale is that"
        raise Unsayable("weight", message, "let them sum to something else")
    return w / total, factor if normalize else factor * total


def _one_of(name: str, values: list[Fraction]) -> Fraction:
    found = list(dict.fromkeys(values))
    if len(found) > 1:
        shown = " and ".join(f"{float(value):g}" for value in found)
        message = f"`{name}` is {shown}, by model: a recipe has one for both"
        raise Unsayable(name, message, f"give both the same `{name}`")
    if not 0 <= found[0] <= 1:
        raise Unsayable(name, f"`{name}` is {float(found[0]):g}: a share is between 0 and 1", "mend it")
    return found[0]


def _check_drops(mergekit: str, options: dict[str, Value], shared: Shared) -> None:
    """What happens to the elements that are left, and DELLA's chances."""
    density = Fraction(options.get("density", 1))
    if density == 1 and "epsilon" in options:
        options["epsilon"] = Fraction(0)  # nothing is dropped, whatever it is there
    if density < 1 and shared["rescale"] and "density" in options and "rescale" not in options:
        message = "`rescale` makes the rest as large as the whole was: a recipe has that for random drops alone"
        raise Unsayable("rescale", message, "leave `rescale` out")
    if (
        0 < density < 1
        and "epsilon" in options
        and not 0 < density - options["epsilon"] <= density + options["epsilon"] < 1
    ):
        message = f"density {float(density):g} with epsilon {float(options['epsilon']):g} leads out of 0..1"
        raise Unsayable("epsilon", message, "mergekit refuses this too: take a smaller epsilon")
    if density == 0 and "epsilon" in options:
        options["epsilon"] = Fraction(0)


def notes_on(mergekit: str, pair: Pair, options: Mapping[str, Value], dtype: str | None) -> list[str]:
    """Where the two programs compute the same thing in another way, or another thing in a detail: one line each."""
    density = Fraction(options.get("density", 1))
    some = 0 < density < 1
    found = []
    if mergekit in ("linear", "slerp"):
        found.append("arithmetic: in float32 (of float32 checkpoints in float64), rounded once at the end")
    else:
        where = dtype or "the checkpoints' dtype"
        found.append(
            f"arithmetic: mergekit subtracts, weighs and sums in {where}, rounding each step; amatax in float32 or wider, "
            "rounding once"
        )
    if mergekit == "slerp":
        found.append("slerp: a tensor of zeros is averaged here, and taken as perpendicular by mergekit")
    if pair.alone:
        found.append("one tuned model: the base stands in for SFT, and what SFT changed is zero")
    elif METHODS[mergekit].elects:
        found.append("sign election: where both weighted changes cancel out, rounding decides, here and there")
    if mergekit == "model_stock":
        found.append(
            "model_stock: changes that point apart leave the base here, and lead away from both models in mergekit, which also takes "
            "a product of norms below 1e-6 for 1e-6"
        )
    if mergekit == "ties" and density < 1:
        found.append(
            "ties: floor(density x n) elements stay, as the density is written; mergekit rounds the product in floating point and "
            "keeps at least one; of equal magnitudes the first stay here, any there"
        )
    if mergekit.startswith("breadcrumbs") and density < 1:
        found.append(
            "breadcrumbs: both counts are floor(share x n), as the shares are written; mergekit rounds the products in floating point; "
            "of equal magnitudes the first are the larger here, any there"
        )
    if mergekit.startswith(("dare", "della")) and some:
        found.append(
            "random drops: mergekit's depend on --random-seed and the order, those here on `seed`: others are dropped"
        )
    if mergekit.startswith("dare") and some and options["rescale"]:
        found.append(
            "rescale: what is kept is divided by the density here (the paper); mergekit gives it the sum of magnitudes that the tensor had"
        )
    if mergekit.startswith("della") and some:
        found.append(
            "ranks: an element's chance follows from its rank in the tensor here, from its rank in its row in mergekit"
        )
        if options["rescale"]:
            found.append(
                "rescale: each kept element is divided by its own chance here (the paper): unbiased; mergekit scales all by one factor, "
                "so in the mean large changes come out larger, and small ones smaller"
            )
    return found
