"""Makes sampler.npz: probabilities by Transformers' logits processors. Needs torch, transformers.

    python tests/edge/data/make_sampler.py

It holds random logits [vocabulary], a history [tokens], settings [cases, 5] in the order of FIELDS,
and the probabilities [cases, vocabulary] that generate() draws from.
"""

from pathlib import Path

import numpy as np
import torch
from transformers.generation import logits_process as warp

FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

SETTINGS = (
    (1.0, 0, 1.0, 0.0, 1.0),
    (0.6, 0, 1.0, 0.0, 1.0),
    (1.7, 0, 1.0, 0.0, 1.0),
    (1.0, 20, 1.0, 0.0, 1.0),
    (1.0, 0, 0.9, 0.0, 1.0),
    (1.0, 0, 0.05, 0.0, 1.0),
    (1.0, 0, 0.999, 0.0, 1.0),
    (1.0, 0, 1.0, 0.1, 1.0),
    (1.0, 0, 1.0, 0.0, 1.3),
    (1.0, 0, 1.0, 0.0, 0.8),
    (0.7, 20, 0.8, 0.0, 1.05),
    (1.5, 50, 0.95, 0.02, 1.2),
    (0.3, 1000, 0.9, 0.3, 1.0),
)


def probabilities(
    logits: torch.Tensor, history: torch.Tensor, setting: tuple[float, ...]
) -> np.ndarray:
    temperature, top_k, top_p, min_p, penalty = setting
    steps = [warp.RepetitionPenaltyLogitsProcessor(penalty)]
    steps.append(warp.TemperatureLogitsWarper(temperature))
    if top_k:
        steps.append(warp.TopKLogitsWarper(int(top_k)))
    if top_p < 1:
        steps.append(warp.TopPLogitsWarper(top_p))
    if min_p:
        steps.append(warp.MinPLogitsWarper(min_p))
    scores = logits[None]
    for step in steps:
        scores = step(history[None], scores)
    return torch.softmax(scores, -1)[0].numpy()


def main() -> None:
    random = np.random.default_rng(11)
    logits = (random.standard_normal(1500) * 3).astype(np.float32)
    # A few that are likely, as a trained model has them; the penalty's two signs are both in play.
    logits[random.integers(0, 1500, 8)] += 8
    history = np.concatenate([np.argsort(logits)[-5:], random.integers(0, 1500, 40)])
    history = np.concatenate([history, history[:10]])  # a token counts once however often it came
    rows = [
        probabilities(torch.from_numpy(logits), torch.from_numpy(history), setting)
        for setting in SETTINGS
    ]
    np.savez_compressed(
        Path(__file__).with_name("sampler.npz"),
        logits=logits,
        history=history,
        settings=np.array(SETTINGS, np.float64),
        probabilities=np.stack(rows),
    )


if __name__ == "__main__":
    main()
