"""Who answers: the recipe's RLHF model on this machine, or a server that has it. Both say what they are and yield samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from amatax.checkpoints.opening import open_checkpoint
from amatax.fitting.identity import fingerprint
from amatax.fitting.libraries import import_libraries
from amatax.fitting.records import Record, prompt_ids, prompt_text
from amatax.fitting.sampling import Sample, Watching
from amatax.recipes.schema import Recipe

if TYPE_CHECKING:
    from amatax.fitting.distilling import DistillOptions


class LocalModel:
    """A model of the recipe, `models.rlhf` unless another role is asked for, by transformers, with the tokenizer of `output.tokenizer`.

    Attributes:
        notes: for the user.
    """

    def __init__(self, recipe: Recipe, options: DistillOptions, watcher: Watching) -> None:
        self.notes: list[str] = []
        self._options, self._watcher = options, watcher
        models = recipe.models.by_role()
        self._model = open_checkpoint(models[options.role])
        role = recipe.output.tokenizer
        self._of_tokenizer = self._model if role == options.role else open_checkpoint(models[role])

    def head(self, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
        """What the responses depend on; `earlier` is the head of a journal that is here already."""
        head = {"model": fingerprint(self._model)}
        if self._of_tokenizer is not self._model:
            tokenizer = fingerprint(self._of_tokenizer)
            for weights in ("files", "adapter"):  # they have no say
                tokenizer.pop(weights, None)
            head["tokenizer"] = tokenizer
        return head

    def run(self) -> dict[str, Any]:
        """What may change from run to run."""
        return {"batch_size": self._options.batch_size, "device": self._options.device}

    def prepare(self, records: Sequence[Record]) -> None:
        """Find what can be wrong before the weights are read.

        Raises:
            CheckpointError: of the tokenizers.
            DataError: of a prompt.
            AmataxError: if there is no such device.
        """
        import_libraries()
        from amatax.fitting.tokens import open_tokenizer, same_vocabulary
        from amatax.streaming.stream import pick_device

        self._device = pick_device(self._options.device)
        trust = self._options.trust_remote_code
        self._tokenizer = open_tokenizer(self._of_tokenizer, trust_remote_code=trust)
        if self._of_tokenizer is not self._model:
            own = open_tokenizer(self._model, trust_remote_code=trust)
            same_vocabulary(self._tokenizer, own, (self._of_tokenizer.ref, self._model.ref))
        self._records = records
        self._prompts = [prompt_ids(record, self._tokenizer, raw=self._options.sampling.raw) for record in records]

    def samples(self, wanted: Sequence[int]) -> Iterator[list[Sample]]:
        """The batches that hold a wanted item, each as a whole: as an uninterrupted run samples it."""
        from amatax.fitting.generation import sample_batches

        size, count = self._options.batch_size, len(self._records) * self._options.sampling.n
        starts = sorted({item // size * size for item in wanted})
        return sample_batches(
            self._model,
            self._tokenizer,
            self._records,
            self._prompts,
            [range(start, min(start + size, count)) for start in starts],
            self._options.sampling,
            device=self._device,
            trust_remote_code=self._options.trust_remote_code,
            tick=self._tick,
        )

    def _tick(self, ended: int) -> None:
        self._watcher.advance(ended)
        self._watcher.wait()


class ServedModel:
    """A server of the user's that has the recipe's model; neither torch nor transformers is needed here.

    Attributes:
        notes: for the user.
    """

    def __init__(self, recipe: Recipe, options: DistillOptions, watcher: Watching) -> None:
        from amatax.fitting.client import Server, server_url

        self.notes: list[str] = []
        self._options, self._watcher, self._ref = options, watcher, str(recipe.models.by_role()[options.role])
        self._server = Server(server_url(options.server or ""), options.retries, options.timeout, options.concurrency)

    def head(self, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
        """What the responses depend on; a finished run is recognised without the server."""
        from amatax.fitting.serving import served_model

        recorded = (earlier or {}).get("server")
        known = (
            recorded.get("model") if isinstance(recorded, dict) and recorded.get("url") == self._server.url else None
        )
        self._name = self._options.server_model or known or served_model(self._server)
        return {"model": {"ref": self._ref}, "server": {"url": self._server.url, "model": self._name}}

    def run(self) -> dict[str, Any]:
        """Nothing of the run changes the requests."""
        return {}

    def prepare(self, records: Sequence[Record]) -> None:
        """Raises DataError for a record that --raw cannot send."""
        self._records = records
        if self._options.sampling.raw:
            for record in records:
                prompt_text(record)

    def samples(self, wanted: Sequence[int]) -> Iterator[list[Sample]]:
        """As they are answered."""
        from amatax.fitting.serving import Requests, serve_samples

        self._watcher.say(
            f"{self._server.url} answers with {self._name!r}; the recipe's {self._options.role} model is {self._ref}"
        )
        requests = Requests(self._server, self._name, self._records, self._options.sampling)
        return serve_samples(requests, wanted, self._watcher, self.notes)
