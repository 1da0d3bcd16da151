"""A transformers model whose weights are merged in memory: moved from merge to merge without a file.

SFT and RLHF are held as they are on disk, and every merge is made from them anew, by the code that `amatax merge` runs: what
stands in the model is bit for bit what that writes and transformers loads. Nothing is accumulated, and nothing grows.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

from amatax.checkpoints.checkpoint import TensorEntry
from amatax.checkpoints.dtypes import torch_dtype
from amatax.errors import AmataxError, InputChangedError
from amatax.evaluation.memory import check_live_memory
from amatax.evaluation.places import Place, find_places
from amatax.fitting.adapted import mapped
from amatax.fitting.loading import load_model
from amatax.planning.memory import default_threads
from amatax.planning.plan import Plan, PlannedTensor, make_plan
from amatax.planning.siblings import config_differences
from amatax.planning.side_files import changed_config
from amatax.recipes.schema import Ratios, Recipe
from amatax.streaming.held import Held, HeldWorker, Target
from amatax.streaming.stream import Streamer, pick_device

AnyRatios = Ratios | float | Sequence[float]


class LiveModel:
    """One merge at a time, of the same models. Open it by `LiveModel.open`.

    Attributes:
        model: of transformers, in evaluation mode, on the device; its weights want no gradient.
        plan: of the merge that it is now; None while none is whole.
        device: where it is.
    """

    def __init__(
        self, plan: Plan, model: Any, places: dict[str, list[Place]], device: torch.device, threads: int
    ) -> None:
        self.model, self.device = model, device
        self.plan: Plan | None = None
        self._first, self._places, self._threads = plan, places, threads
        self._held = Held(device)
        self._streamers: dict[str, Streamer] = {}

    @classmethod
    def open(
        cls,
        plan: Plan,
        device: torch.device | str = "cpu",
        *,
        dtype: torch.dtype | None = None,
        trust_remote_code: bool = False,
        threads: int | None = None,
        advance: Callable[[int], None] = lambda n: None,
        beside: int = 0,
    ) -> LiveModel:
        """Load SFT and RLHF (and base, for a method that needs it) and the model that will be merged, at the plan's merge.

        Args:
            plan: of a merge, its files here; its output dtype is the model's.
            device: cpu, cuda, cuda:N, or auto.
            dtype: that the model computes in; its numbers stay those that the merge rounds to. The output's by default.
            trust_remote_code: let transformers run the checkpoint's own code.
            threads: that merge; by default the cores, up to a point.
            advance: told the bytes that are read.
            beside: bytes of other weights that there must be room for.

        Raises:
            AmataxError: if there is too little memory.
            CheckpointError: if transformers cannot load the model, or makes something of its tensors that cannot be merged in place.
            InputChangedError, NonFiniteError: as a merge does.
        """
        where = pick_device(device) if isinstance(device, str) else device
        check_live_memory(plan, where, dtype, beside)
        described = plan.checkpoints[plan.recipe.output.config]
        tensors = {name: mapped(_entry(tensor)) for name, tensor in plan.tensors.items()}
        with TemporaryDirectory(prefix="amatax-") as name:
            folder = Path(name)
            (folder / "config.json").write_text(json.dumps(changed_config(described.config, plan.config_changes)))
            for file, source in plan.side_files.items():
                if file == "generation_config.json" or (file.endswith(".py") and "/" not in file):
                    shutil.copyfile(source, folder / file)
            load = partial(
                load_model, described, dtype=dtype or "auto", trust_remote_code=trust_remote_code, folder=folder
            )
            model = load(tensors=tensors)
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            model.to(where)
            places = find_places(plan, model, tensors, lambda marked: load(tensors=marked, dtype=torch.float32))
        live = cls(plan, model, places, where, threads or default_threads())
        live._hold(plan, advance)
        live.set(plan.recipe)
        return live

    def set(self, wanted: Recipe | AnyRatios) -> Plan:
        """Make it another merge of the same models.

        Args:
            wanted: a recipe; or ratios, for the recipe that it was opened with.

        Returns:
            The merge's plan.

        Raises:
            PlanError: for ratios that do not fit the model.
            AmataxError: for a recipe of other models, or of another output.
            InputChangedError: if a checkpoint has changed since it was loaded.
            NonFiniteError: for NaN, infinity or overflow.
        """
        plan = self._plan(wanted)
        self._hold(plan)
        self._move(plan)
        return plan

    @contextmanager
    def sft(self) -> Iterator[Any]:
        """The model as SFT itself, for a while; then it is the merge again that it was. Only where `holds_sft`."""
        was, own = self.plan, self.model.generation_config
        if was is None:
            raise AmataxError("no merge is in memory", "the last one was interrupted: set it again")
        self.plan = None
        for tensor in self._first.tensors.values():
            for place in self._places.get(tensor.name, ()):
                place.memory.copy_(self._held.whole(_entry(tensor))[place.part])
        folder = self._first.checkpoints["sft"].folder
        if (folder / "generation_config.json").is_file():
            self.model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
        try:
            yield self.model
        finally:
            self.model.generation_config = own
        self._move(was)

    def _move(self, plan: Plan) -> None:
        self.plan = None
        merge = plan.recipe.merge
        key = json.dumps([merge.method, merge.options], sort_keys=True)
        streamer = self._streamers.pop(key, None) or Streamer(
            plan, [self.device], self._threads, make_worker=partial(HeldWorker, self._held, self._target)
        )
        streamer.run(plan.tensors.values(), lambda tensor, begin, data: None)
        self._streamers = {key: streamer}  # one method's buffers, and those of a run that failed are not used again
        self.plan = plan

    def check(self) -> None:
        """Merge again from the files and compare bit for bit.

        Raises:
            AmataxError: if a tensor differs, naming it.
        """
        if self.plan is None:
            raise AmataxError("no merge is in memory", "the last one was interrupted: set it again")
        whole: dict[str, bytearray] = {}
        differ: list[str] = []

        def compare(tensor: PlannedTensor, begin: int, data: memoryview) -> None:
            if not begin:  # perhaps anew
                whole[tensor.name] = bytearray()
            merged = whole[tensor.name]
            merged += data
            if len(merged) == math.prod(tensor.shape) * torch_dtype(tensor.dtype).itemsize:
                fresh = torch.frombuffer(whole.pop(tensor.name), dtype=torch_dtype(tensor.dtype)).view(tensor.shape)
                for place in self._places.get(tensor.name, ()):
                    if not torch.equal(_bits(place.memory), _bits(fresh[place.part].to(place.memory.dtype))):
                        differ.append(tensor.name)

        Streamer(self.plan, [self.device], self._threads).run(self.plan.tensors.values(), compare)
        if differ:
            raise AmataxError(
                f"the weights in memory are not those of a fresh merge: {len(differ)} tensors differ, first {min(differ)!r}",
                "did a measure write to the model, or another program to the checkpoints? If not, please report this",
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that are held beside the model."""
        return self._held.nbytes

    def _plan(self, wanted: Recipe | AnyRatios) -> Plan:
        if isinstance(wanted, Recipe):
            recipe = wanted
        else:
            ratios = wanted if isinstance(wanted, Ratios | float | int) else list(wanted)
            recipe = self._first.recipe.model_copy(
                update={"merge": self._first.recipe.merge.model_copy(update={"ratios": ratios})}
            )
        plan = make_plan(recipe)
        for role, checkpoint in self._first.checkpoints.items():
            known = plan.checkpoints.get(role)
            if known is not None and known.pinned != checkpoint.pinned:
                raise AmataxError(f"{role} is {known.pinned}, and {checkpoint.pinned} was loaded", "open it anew")
            for before, now in zip(checkpoint.inputs, known.inputs if known else (), strict=False):
                if before.file != now.file:
                    raise InputChangedError(f"{now.file.path} has changed since it was loaded", "run it again")
        if _layout(plan) != _layout(self._first) or plan.config_changes != self._first.config_changes:
            raise AmataxError(
                "the recipe's output is another than that of the model in memory (dtype, names or tied embeddings)",
                "give all points one `output.dtype`, and overrides that leave tied embeddings together",
            )
        return plan

    def _hold(self, plan: Plan, advance: Callable[[int], None] = lambda n: None) -> None:
        """Read what is not held yet: at first everything, later what another method needs."""
        entries = [e for t in plan.tensors.values() for e in (*t.sources.values(), *t.others.values())]
        self._held.read(entries, advance)

    def _target(self, tensor: PlannedTensor) -> Target | None:
        places, dtype = self._places.get(tensor.name, []), torch_dtype(tensor.dtype)
        if not places:
            return None
        memory = places[0].memory
        if len(places) == 1 and memory.dtype == dtype and memory.shape == tensor.shape and memory.is_contiguous():
            return Target(memory.view(-1), lambda: None)
        room = torch.empty(tensor.shape, dtype=dtype, device=self.device)

        def finish() -> None:
            for place in places:
                place.memory.copy_(room[place.part])

        return Target(room.view(-1), finish)


def holds_sft(plan: Plan, dtype: torch.dtype | None = None) -> bool:
    """Whether a live model of these merges can be SFT itself, bit for bit: the same model, without an adapter, and no number rounded."""
    sft, described = plan.checkpoints["sft"], plan.checkpoints[plan.recipe.output.config]

    def exact(tensor: PlannedTensor) -> bool:
        own, here = torch_dtype(_entry(tensor).dtype), dtype or torch_dtype(tensor.dtype)
        return not own.is_floating_point or torch.promote_types(own, here) == here

    same = described is sft or not config_differences(sft, described)
    return sft.adapter is None and same and all(map(exact, plan.tensors.values()))


def _entry(tensor: PlannedTensor) -> TensorEntry:
    """SFT's, without an adapter: which numbers a model is loaded with before it is merged does not matter."""
    return {**tensor.others, **tensor.sources}["sft"]


def _layout(plan: Plan) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(t.name, t.dtype, t.shape) for t in plan.tensors.values()]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().contiguous().view(-1).view(torch.uint8)
