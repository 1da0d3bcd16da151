"""A wrong recipe is refused with its file, line, key and the next step, all faults at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.breaking import RECIPE, Case, amatax_here, assert_clear, assert_refused, merge_here

MODELS = "models:\n  sft: ./sft\n  rlhf: ./rlhf\n"


def text(recipe: str) -> Any:
    """Damage: this recipe instead."""
    return lambda folder: (folder / "recipe.yaml").write_text(recipe)


def merge(lines: str) -> Any:
    """Damage: a recipe with these lines under `merge` (line 5 of the file is the first)."""
    return text(MODELS + "merge:\n" + "".join(f"  {line}\n" for line in lines.split("\n")))


def output(line: str) -> Any:
    """Damage: a recipe with this line under `output` (line 7)."""
    return text(RECIPE + f"output:\n  {line}\n")


def no_recipe(folder: Path) -> None:
    (folder / "recipe.yaml").unlink()


def recipe_is_a_folder(folder: Path) -> None:
    no_recipe(folder)
    (folder / "recipe.yaml").mkdir()


CASES = [
    # misspelt keys
    Case("misspelt top key", text(RECIPE.replace("merge:", "merg:")), ("recipe.yaml:4 (merg)", "`merge`")),
    Case("misspelt role", text(RECIPE.replace("rlhf:", "rhlf:")), ("recipe.yaml:3 (models.rhlf)", "`rlhf`")),
    Case("misspelt ratios", merge("ratio: 0.5"), ("recipe.yaml:5 (merge.ratio)", "unknown key", "`ratios`")),
    Case(
        "misspelt kind",
        merge("ratios:\n  blocks: [0.5]\n  embedings: 0"),
        ("recipe.yaml:7 (merge.ratios.embedings)", "`embeddings`"),
    ),
    Case(
        "misspelt key of a block",
        merge("ratios: [{layer: 0-5, ratio: 0.5}]"),
        ("recipe.yaml:5 (merge.ratios[0].layer)", "`layers`"),
    ),
    Case(
        "misspelt key of an override",
        merge("ratios: {blocks: [0.5], overrides: [{mach: '*', ratio: 1}]}"),
        ("recipe.yaml:5 (merge.ratios.overrides[0].mach)", "`match`"),
    ),
    Case(
        "misspelt output key",
        output("max_shardsize: 1GB"),
        ("recipe.yaml:7 (output.max_shardsize)", "`max_shard_size`"),
    ),
    Case("misspelt dtype", output("dtype: bfloat"), ("recipe.yaml:7 (output.dtype)", "'bfloat'", "`bfloat16`")),
    Case("misspelt method", merge("method: avrage\nratios: 0.5"), ("recipe.yaml:5 (merge.method)", "`average`")),
    Case(
        "option that the method lacks",
        merge("ratios: 0.5\ndensity: 0.3"),
        ("recipe.yaml:6 (merge.density)", "unknown key"),
    ),
    Case("key twice", text(RECIPE + "  ratios: 0.5\n"), ("recipe.yaml:6 (merge.ratios)", "twice", "line 5")),
    Case(
        "two faults at once",
        text(RECIPE.replace("rlhf:", "rhlf:").replace("merge:", "merg:")),
        ("faults", "recipe.yaml:3 (models.rhlf)", "`rlhf`", "recipe.yaml:4 (merg)", "`merge`"),
    ),
    # the text itself
    Case("no such recipe", no_recipe, ("recipe.yaml", "no such")),
    Case("recipe is a folder", recipe_is_a_folder, ("recipe.yaml", "a folder, not a recipe")),
    Case("empty recipe", text(""), ("recipe.yaml", "empty")),
    Case("recipe is a list", text("- sft\n- rlhf\n"), ("recipe.yaml", "mapping")),
    Case("recipe is one word", text("average\n"), ("recipe.yaml", "mapping")),
    Case("not YAML", text("models: [\n"), ("recipe.yaml:2", "not valid YAML")),
    Case("a tab", text("models:\n\tsft: ./sft\n"), ("recipe.yaml:2", "not valid YAML")),
    Case("not text", lambda f: (f / "recipe.yaml").write_bytes(b"\x80\x81\xff\x00"), ("recipe.yaml", "text")),
    Case("a control character", text("models: \x07\n"), ("recipe.yaml", "not valid YAML")),
    Case(
        "a tag that runs code",
        text(RECIPE + "record: !!python/object/apply:os.system ['touch pwned']\n"),
        ("recipe.yaml:6", "not valid YAML", "python/object"),
    ),
    Case("an endless alias", text(RECIPE + "record: &a {b: *a}\n"), ("recipe.yaml",)),
    Case("a list as key", text(RECIPE + "? [a, b]\n: c\n"), ("recipe.yaml",)),
    Case("a number as key", text(RECIPE + "1: 2\n"), ("recipe.yaml:6",)),
    Case("merge is a number", text(MODELS + "merge: 5\n"), ("recipe.yaml:4 (merge)",)),
    # ratios
    Case("no ratios", text(MODELS), ("recipe.yaml", "ratios")),
    Case("more ratios than layers", merge("ratios: [0, 0, 0, 0, 0, 0, 0]"), ("recipe.yaml:5", "7 ratios", "6 layers")),
    Case("no ratio in the list", merge("ratios: []"), ("recipe.yaml:5 (merge.ratios)",)),
    Case("ratio above 1", merge("ratios: [0.7, 1.5]"), ("recipe.yaml:5 (merge.ratios[1])", "1.5", "extrapolate: true")),
    Case("ratio below 0", merge("ratios: -0.1"), ("recipe.yaml:5 (merge.ratios)", "-0.1", "extrapolate: true")),
    Case("ratio is a word", merge("ratios: high"), ("recipe.yaml:5 (merge.ratios)", "'high'")),
    Case("ratio is NaN", merge("ratios: .nan"), ("recipe.yaml:5 (merge.ratios)",)),
    Case("ratio is true", merge("ratios: [true]"), ("recipe.yaml:5 (merge.ratios[0])",)),
    Case(
        "blocks overlap",
        merge("ratios: [{layers: 0-3, ratio: 1}, {layers: 3-5, ratio: 0}]"),
        ("recipe.yaml:5", "layer 3", "exactly once"),
    ),
    Case(
        "blocks leave a gap",
        merge("ratios: [{layers: 0-1, ratio: 1}, {layers: 4-5, ratio: 0}]"),
        ("recipe.yaml:5", "layers 2-3", "exactly once"),
    ),
    Case("block beyond the model", merge("ratios: [{layers: 0-9, ratio: 1}]"), ("recipe.yaml:5", "0-9", "0-5")),
    Case("block backwards", merge("ratios: [{layers: 5-0, ratio: 1}]"), ("recipe.yaml:5", "'5-0'")),
    Case("block without layers", merge("ratios: [{layers: all, ratio: 1}]"), ("recipe.yaml:5", "'all'", "0-7")),
    Case("attention without mlp", merge("ratios: [{layers: 0-5, attention: 1}]"), ("recipe.yaml:5", "`mlp`")),
    Case("numbers and blocks mixed", merge("ratios: [0.5, {layers: 3-5, ratio: 1}]"), ("recipe.yaml:5", "mixed")),
    Case(
        "override that matches nothing",
        merge("ratios: {blocks: [0.5], overrides: [{match: '*.mpl.*', ratio: 1}]}"),
        ("recipe.yaml:5 (merge.ratios.overrides[0])", "'*.mpl.*'", "inspect"),
    ),
    Case(
        "override for nothing",
        merge("ratios: {blocks: [0.5], overrides: [{ratio: 1}]}"),
        ("recipe.yaml:5 (merge.ratios.overrides[0])", "`match`"),
    ),
    # models and output
    Case("no rlhf", text(RECIPE.replace("  rlhf: ./rlhf\n", "")), ("recipe.yaml", "models.rlhf", "needed")),
    Case("model is a number", text(RECIPE.replace("./sft", "7")), ("recipe.yaml:2 (models.sft)",)),
    Case("model is no id", text(RECIPE.replace("./sft", "a/b/c")), ("recipe.yaml:2 (models.sft)", "'a/b/c'", "./")),
    Case("no such folder", text(RECIPE.replace("./sft", "./stf")), ("recipe.yaml:2 (models.sft)", "stf", "no such")),
    Case("model is a file", text(RECIPE.replace("./sft", "./sft/config.json")), ("recipe.yaml:2", "not a folder")),
    Case("folder without ./", text(RECIPE.replace("./sft", "sft")), ("recipe.yaml:2 (models.sft)", "sft", "./sft")),
    Case("no such user", text(RECIPE.replace("./sft", "~nosuchuser/sft")), ("recipe.yaml:2", "~nosuchuser/sft")),
    Case("name too long", text(RECIPE.replace("./sft", "./" + "x" * 300)), ("recipe.yaml:2", "xxx")),
    Case("NUL in a path", text(RECIPE.replace("./sft", '"./a\\0b"')), ("recipe.yaml:2",)),
    Case("tokenizer of a model that is not named", output("tokenizer: base"), ("models.base", "needed")),
    Case("shards of no bytes", output("max_shard_size: 0GB"), ("recipe.yaml:7 (output.max_shard_size)",)),
    Case("shard size in words", output("max_shard_size: five"), ("recipe.yaml:7 (output.max_shard_size)", "'five'")),
    Case("shard size in no unit", output("max_shard_size: 5i"), ("recipe.yaml:7 (output.max_shard_size)",)),
    Case("shard size infinite", output(f"max_shard_size: '{'9' * 400}'"), ("recipe.yaml:7 (output.max_shard_size)",)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_wrong_recipe_is_refused(case: Case, siblings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the folder of the recipe, as a user sits there."""
    monkeypatch.chdir(siblings)
    assert_refused(case, siblings)
    assert not (siblings / "pwned").exists()
    assert not (siblings / "out.unfinished").exists()


def test_no_output_named(siblings: Path) -> None:
    """Neither in the recipe nor on the command line."""
    answer = amatax_here("merge", siblings / "recipe.yaml")
    assert_clear(answer)
    assert "output" in answer.err


def test_faults_of_the_recipe_and_of_the_siblings_at_once(siblings: Path) -> None:
    """All that headers can show is said in one go: the ratios do not fit, and a sibling does not either."""
    from tests.faults.breaking import NORM, edit_tensors

    merge("ratios: [0, 0, 0, 0, 0, 0, 0]")(siblings)
    edit_tensors(siblings / "rlhf", lambda t: t.pop(NORM))
    answer = merge_here(siblings)
    assert_clear(answer)
    assert NORM in answer.err
    assert "7 ratios" in answer.err


def test_a_yaml_bomb_ends_soon(siblings: Path) -> None:
    """Aliases of aliases: a few lines that would expand to 10^9 values."""
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    text(RECIPE + "record:\n" + "".join(f"  {row}\n" for row in rows))(siblings)
    command = [sys.executable, "-m", "amatax", "check", str(siblings / "recipe.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=8)
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_that_no_file_can_have() -> None:
    """A recipe name longer than file names can be."""
    assert_clear(amatax_here("merge", "x" * 300, "out"))


KEYS = st.sampled_from(
    [
        "models",
        "base",
        "sft",
        "rlhf",
        "merge",
        "method",
        "ratios",
        "blocks",
        "layers",
        "ratio",
        "attention",
        "mlp",
        "head",
        "embeddings",
        "norms",
        "other",
        "overrides",
        "match",
        "extrapolate",
        "untie",
        "output",
        "path",
        "dtype",
        "max_shard_size",
        "tokenizer",
        "config",
        "fit",
        "alpha",
        "data",
        "prompts",
        "holdout",
        "record",
        "x",
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 10**30)
    | st.floats(allow_nan=True)
    | st.sampled_from(
        ["", "mean", "block", "0-7", "3-", "-", "5GB", "5iB", "./sft", "~x/y", "@", "a/b@c", "\0", "9" * 5000]
    )
    | st.text(max_size=6)
)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3), max_leaves=6)


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(keys=st.lists(KEYS, min_size=1, max_size=4), value=VALUES)
def test_any_value_anywhere_is_taken_or_refused(keys: list[str], value: Any, tmp_path: Path) -> None:
    """Never a traceback, never our fault."""
    recipe: dict[str, Any] = {"models": {"sft": "./sft", "rlhf": "./rlhf"}, "merge": {"ratios": [0.5]}}
    here = recipe
    for key in keys[:-1]:
        if not isinstance(here.get(key), dict):
            here[key] = {}
        here = here[key]
    here[keys[-1]] = value
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    answer = amatax_here("check", path, "--json")
    if answer.code != 0:
        assert_clear(answer)


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(at=st.integers(0, len(RECIPE)), junk=st.text(min_size=1, max_size=8), cut=st.integers(0, 8))
def test_any_text_is_taken_or_refused(at: int, junk: str, cut: int, tmp_path: Path) -> None:
    """A recipe with junk in its middle."""
    path = tmp_path / "recipe.yaml"
    path.write_bytes((RECIPE[:at] + junk + RECIPE[at + cut :]).encode("utf-8", "surrogatepass"))
    answer = amatax_here("check", path)
    if answer.code != 0:
        assert_clear(answer)
