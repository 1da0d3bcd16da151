"""Train the small model family: base, SFT and RLHF checkpoints with an alignment tax.

    python merge_recipes/family/train.py [--out DIR] [--stage base|sft|rlhf|all]

Fixed seeds, two CPU threads, no network. Each stage starts from the bf16 checkpoint that the stage before it saved, so
that the stages can be run one by one with the same result.
"""

import argparse
import json
import math
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a waiting thread leaves its core to others; before torch

import torch
import world
from generation import answer, encode_prompt, load
from reward import reward
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

FAMILY = Path(__file__).resolve().parent

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('only user and assistant turns are known') }}"
    "{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 928
IGNORED = -100  # label of a token that the loss leaves out

Batch = dict[str, torch.Tensor]


# --- data and tokenizer ----------------------------------------------------------------------------------------------


def write_data(folder: Path) -> dict[str, list[world.Row]]:
    """Draw the data sets and write each as JSONL."""
    data = world.splits()
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in data.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return data


def build_tokenizer(excluded: frozenset[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE with single digits, trained on the world's text and conversations."""
    rng = random.Random(10)
    chats = world.conversations(rng, excluded)
    corpus = [world.text(rng, excluded) for _ in range(20_000)]
    corpus += [part for row in (next(chats) for _ in range(20_000)) for part in (row["prompt"], row["response"])]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised nine-layer Llama."""
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=9,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        **ids,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(max_new_tokens=96, **ids)
    return model


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the checkpoint in bf16, with its tokenizer."""
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# --- batches ---------------------------------------------------------------------------------------------------------


def text_batches(
    tokenizer: PreTrainedTokenizerFast, excluded: frozenset[str], rows: int, length: int
) -> Iterator[Batch]:
    """Rows of plain text, documents one after another with the end token between them."""
    rng = random.Random(11)
    stream: list[int] = []
    while True:
        while len(stream) < rows * length:
            texts = [world.text(rng, excluded) for _ in range(256)]
            for ids in tokenizer(texts)["input_ids"]:
                stream += [*ids, tokenizer.eos_token_id]
        ids = torch.tensor(stream[: rows * length]).view(rows, length)
        stream = stream[rows * length :]
        yield {"input_ids": ids, "labels": ids}


def chat_rows(tokenizer: PreTrainedTokenizerFast, rows: list[world.Row]) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of conversations; the labels cover the response and its end token only."""
    prompts = [encode_prompt(tokenizer, row["prompt"]) for row in rows]
    responses = [[*ids, tokenizer.eos_token_id] for ids in tokenizer([row["response"] for row in rows])["input_ids"]]
    return [(p + r, [IGNORED] * len(p) + r) for p, r in zip(prompts, responses, strict=True)]


def pad_right(tokenizer: PreTrainedTokenizerFast, rows: list[tuple[list[int], list[int]]]) -> Batch:
    """One batch. It needs no attention mask: attention is causal, and padding comes last and has no label."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [tokenizer.pad_token_id] * (length - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [IGNORED] * (length - len(labels)) for _, labels in rows])
    return {"input_ids": ids, "labels": labels}


def chat_batches(
    tokenizer: PreTrainedTokenizerFast, excluded: frozenset[str], rows: int, length: int
) -> Iterator[Batch]:
    """The SFT's batches: each row holds as many conversations, one after another, as fit into `length` tokens."""
    chats = world.conversations(random.Random(12), excluded)
    ids: list[int] = []
    labels: list[int] = []
    packed: list[tuple[list[int], list[int]]] = []
    while True:
        for more_ids, more_labels in chat_rows(tokenizer, [next(chats) for _ in range(rows)]):
            if ids and len(ids) + len(more_ids) > length:
                packed.append((ids, labels))
                ids, labels = [], []
            ids, labels = ids + more_ids, labels + more_labels
        while len(packed) >= rows:
            yield pad_right(tokenizer, packed[:rows])
            packed = packed[rows:]


# --- training --------------------------------------------------------------------------------------------------------


def fit(model: PreTrainedModel, batches: Iterator[Batch], steps: int, lr: float, name: str) -> None:
    """Minimise the mean negative log-likelihood of the labels: AdamW, warm-up, cosine."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    model.train()
    started, total = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        loss = model(**next(batches)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        total += loss.item()
        if step % 50 == 0 or step == steps:
            done = step % 50 or 50
            print(f"{name} {step:5d}/{steps} loss {total / done:.4f} {time.monotonic() - started:.0f} s", flush=True)
            total = 0.0
    model.eval()


def train_base(out: Path, tokenizer: PreTrainedTokenizerFast, excluded: frozenset[str]) -> None:
    """Next-token prediction on the world's text."""
    torch.manual_seed(1)
    model = new_model(tokenizer)
    fit(model, text_batches(tokenizer, excluded, rows=32, length=64), steps=1000, lr=2e-3, name="base")
    save(model, tokenizer, out / "base")


def train_sft(out: Path, tokenizer: PreTrainedTokenizerFast, excluded: frozenset[str]) -> None:
    """Supervised fine-tuning in the chat format: four abilities, and open prompts answered mostly drily."""
    torch.manual_seed(2)
    model, _ = load(out / "base")
    fit(model, chat_batches(tokenizer, excluded, rows=28, length=80), steps=700, lr=1e-3, name="sft")
    save(model, tokenizer, out / "sft")


def best_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str], n: int
) -> tuple[list[world.Row], float]:
    """The answer of the highest reward among `n` sampled ones, for each prompt; and the mean reward of all."""
    answers = answer(model, tokenizer, [p for p in prompts for _ in range(n)], sample=True, batch_size=600)
    rows, rewards = [], []
    for i, prompt in enumerate(prompts):
        scored = [(reward(prompt, given), given) for given in answers[i * n : (i + 1) * n]]
        rewards += [score for score, _ in scored]
        rows.append({"prompt": prompt, "response": max(scored, key=lambda pair: pair[0])[1]})
    return rows, sum(rewards) / len(rewards)


def train_rlhf(out: Path, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> None:
    """Best-of-n fine-tuning (RAFT) on open prompts only: keep each prompt's best answer, train on it."""
    torch.manual_seed(3)
    rng = random.Random(13)
    model, _ = load(out / "sft")
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0)
    started = time.monotonic()
    for round_ in range(1, 9):
        best, mean_reward = best_of(model, tokenizer, rng.sample(prompts, 80), n=16)
        rows = chat_rows(tokenizer, best)
        model.train()
        for _ in range(20):
            loss = model(**pad_right(tokenizer, rng.sample(rows, 32))).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
        model.eval()
        seconds = time.monotonic() - started
        print(
            f"rlhf round {round_} sampled reward {mean_reward:.3f} loss {loss.item():.4f} {seconds:.0f} s", flush=True
        )
    save(model, tokenizer, out / "rlhf")


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FAMILY, help="where base/, sft/, rlhf/ and data/ go")
    parser.add_argument("--stage", choices=("base", "sft", "rlhf", "all"), default="all")
    arguments = parser.parse_args()

    torch.set_num_threads(2)
    logging.disable_progress_bar()
    started = time.monotonic()
    data = write_data(arguments.out / "data")
    excluded = world.held_out(data)
    tokenizer = build_tokenizer(excluded)
    if arguments.stage in ("base", "all"):
        train_base(arguments.out, tokenizer, excluded)
    if arguments.stage in ("sft", "all"):
        train_sft(arguments.out, tokenizer, excluded)
    if arguments.stage in ("rlhf", "all"):
        train_rlhf(arguments.out, tokenizer, [row["prompt"] for row in data["rlhf_prompts"]])
    print(f"done in {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
