"""The training of pocket, in torch: batches, loss, optimizers, steps, checkpoints."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from apps.pocket.dataset import Example, examples, held_out_set
from apps.pocket.fakequant import Rounding, rounded
from apps.pocket.network import Network, Shape
from apps.pocket.tokenizer import EOS, render, save_tokenizer, train_tokenizer
from edge.formats import Format

if TYPE_CHECKING:
    import tokenizers

IGNORED = -100

# Commands of the development set that are tried now and then while training.
TESTED = 256

TOKENIZER_EXAMPLES = 40_000

W4 = Rounding(Format.parse("w4g64"), Format.parse("w4g64"))
W2 = Rounding(Format.parse("w2g64"), Format.parse("w4g64"))
# The roundings that steps take in turn once rounding has begun.
TURNS = (W2, Rounding(), W2, W4)


@dataclass(frozen=True)
class Recipe:
    """What a training does."""

    steps: int = 4300
    batch: int = 128
    seed: int = 1
    # Share of the steps, share of the learning rate there; straight in between.
    rates: tuple[tuple[float, float], ...] = (
        (0.0, 0.01),
        (0.08, 1.0),
        (0.432, 1.0),
        (0.56, 0.76),
        (0.56, 0.35),
        (0.76, 0.175),
        (0.88, 0.175),
        (1.0, 0.0),
    )
    round_from: float = 0.835  # share of the steps after which weights are rounded
    muon_lr: float = 0.02
    adam_lr: float = 0.003
    save_every: int = 100
    test_every: int = 300

    def rate(self, step: int) -> float:
        """Share of the full learning rate."""
        place = step / self.steps
        first, last = next(pair for pair in itertools.pairwise(self.rates) if place < pair[1][0])
        return first[1] + (last[1] - first[1]) * (place - first[0]) / (last[0] - first[0])

    def rounding(self, step: int) -> Rounding:
        return TURNS[step % len(TURNS)] if step >= self.round_from * self.steps else Rounding()


def train(out: Path, recipe: Recipe, device: str) -> None:
    """Train by the recipe, saving as it goes; the checkpoint is at `out` at the end.

    `device` is torch's name of one. What was saved at `out` before is gone on with.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    shape = Shape()
    tokenizer = make_tokenizer(out, recipe.seed, shape.vocabulary)
    network = Network(shape).to(device)
    optimizers = make_optimizers(network, recipe)
    step = _resume(out, network, optimizers)
    held_out = [encode(tokenizer, example) for example in held_out_set(TESTED, "dev")]
    started, seen = time.monotonic(), 0
    for ids, targets in itertools.islice(batches(tokenizer, recipe, step), recipe.steps - step):
        for optimizer, rate in zip(optimizers, (recipe.muon_lr, recipe.adam_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * recipe.rate(step)
        loss = loss_of(network, ids.to(device), targets.to(device), recipe.rounding(step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step, seen = step + 1, seen + ids.numel()
        if step % 20 == 0:
            rate = seen / (time.monotonic() - started)
            print(f"step {step} loss {loss.item():.4f} {rate:.0f} tok/s", flush=True)
        if step % recipe.test_every == 0 or step == recipe.steps:
            _report(network, held_out, step)
        if step % recipe.save_every == 0 or step == recipe.steps:
            save(out, network, optimizers, step)
    write_checkpoint(out, network)


def encode(tokenizer: tokenizers.Tokenizer, example: Example) -> tuple[list[int], int]:
    """Token ids of an example, and how many of them are the command's."""
    prompt = tokenizer.encode(render(example.command)).ids
    return prompt + tokenizer.encode(example.action + EOS).ids, len(prompt)


def batches(
    tokenizer: tokenizers.Tokenizer, recipe: Recipe, first: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches from step `first` on, as ids and targets [batch, tokens].

    Examples of 8 batches are sorted by length first, so that a batch has little padding.
    """
    together = 8
    for block in itertools.count(first // together):
        source = examples(recipe.seed * 1_000_003 + block, "train")
        drawn = itertools.islice(source, together * recipe.batch)
        rows = sorted(
            (encode(tokenizer, example) for example in drawn), key=lambda row: len(row[0])
        )
        order = list(range(together))
        random.Random(block).shuffle(order)  # noqa: S311
        for turn, index in enumerate(order):
            if block * together + turn >= first:
                yield pad(rows[index * recipe.batch : (index + 1) * recipe.batch])


def pad(rows: list[tuple[list[int], int]]) -> tuple[Tensor, Tensor]:
    """Rows of one length; targets are the next tokens of the answer and nothing else."""
    width = max(len(ids) for ids, _ in rows) - 1
    inputs = torch.zeros((len(rows), width), dtype=torch.long)
    targets = torch.full((len(rows), width), IGNORED)
    for row, (ids, prompt) in enumerate(rows):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[row, prompt - 1 : len(ids) - 1] = torch.tensor(ids[prompt:])
    return inputs, targets


def loss_of(network: Network, ids: Tensor, targets: Tensor, rounding: Rounding) -> Tensor:
    """Mean cross entropy of the answers' tokens."""
    weights = rounded(network, rounding)
    with torch.autocast(ids.device.type, torch.bfloat16):
        hidden = torch.func.functional_call(network, weights, (ids,))
        wanted = targets != IGNORED
        logits = functional.linear(hidden[wanted], weights["embed_tokens.weight"])
    return functional.cross_entropy(logits.float(), targets[wanted])


def exact_match(network: Network, rows: list[tuple[list[int], int]], rounding: Rounding) -> float:
    """Share of the rows whose every answer token is the likeliest, as greedy decoding takes it."""
    right = 0
    device = network.norm.weight.device
    with torch.no_grad():
        weights = rounded(network, rounding)
        for first in range(0, len(rows), 128):
            ids, targets = (tensor.to(device) for tensor in pad(rows[first : first + 128]))
            hidden = torch.func.functional_call(network, weights, (ids,))
            best = functional.linear(hidden, weights["embed_tokens.weight"]).argmax(-1)
            right += int(((best == targets) | (targets == IGNORED)).all(1).sum())
    return right / len(rows)


def make_optimizers(network: Network, recipe: Recipe) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the layers' matrices (Jordan and others, 2024), AdamW for embedding and norms."""
    matrices = [w for name, w in network.named_parameters() if name.endswith("proj.weight")]
    others = [w for name, w in network.named_parameters() if not name.endswith("proj.weight")]
    return (
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=0.02),
        torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    )


def _report(network: Network, rows: list[tuple[list[int], int]], step: int) -> None:
    shares = [exact_match(network, rows, rounding) for rounding in (Rounding(), W4, W2)]
    text = ", ".join(
        f"{name} {share:.4f}" for name, share in zip(("float", "w4", "w2"), shares, strict=True)
    )
    print(f"step {step} exact match on {len(rows)} of dev: {text}", flush=True)


def make_tokenizer(out: Path, seed: int, vocabulary: int) -> tokenizers.Tokenizer:
    """Train the tokenizer and write it to `out`."""
    drawn = itertools.islice(examples(seed, "train"), TOKENIZER_EXAMPLES)
    texts = (text for example in drawn for text in (f" {example.command}", example.action))
    tokenizer = train_tokenizer(texts, vocabulary)
    save_tokenizer(tokenizer, out)
    return tokenizer


def _resume(out: Path, network: Network, optimizers: tuple[torch.optim.Optimizer, ...]) -> int:
    path = out / "training.pt"
    if not path.exists():
        return 0
    saved = torch.load(path, map_location=network.norm.weight.device)
    network.load_state_dict(saved["network"])
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return int(saved["step"])


def save(
    out: Path, network: Network, optimizers: tuple[torch.optim.Optimizer, ...], step: int
) -> None:
    """Save what a training goes on from."""
    partial = out / "training.partial"
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"network": network.state_dict(), "optimizers": states, "step": step}, partial)
    partial.replace(out / "training.pt")


def write_checkpoint(out: Path, network: Network) -> None:
    """The weights and configs as Transformers reads them."""
    from safetensors.torch import save_file

    tensors = {
        f"model.{name}": weight.detach().to("cpu", torch.bfloat16).contiguous()
        for name, weight in network.named_parameters()
    }
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    config = json.dumps(network.shape.config(), indent=2)
    (out / "config.json").write_text(config + "\n")
    # Greedy: an action is not a matter of chance.
    generation = {"do_sample": True, "top_k": 1, "temperature": 1.0, "eos_token_id": 1}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
