"""Pocket's network in torch, for training: a Llama decoder, its embedding tied to its head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Sizes of the network."""

    vocabulary: int = 2048
    hidden: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    feed_forward: int = 768
    context: int = 256
    rope_theta: float = 10000.0
    eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def config(self) -> dict[str, object]:
        """The config.json of a Hugging Face checkpoint of this shape."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.feed_forward,
            "max_position_embeddings": self.context,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.eps,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "torch_dtype": "bfloat16",
        }


class Layer(nn.Module):
    """Attention and feed-forward, each after a norm and around a residual."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, kv_width = shape.hidden, shape.kv_heads * shape.head_dim
        self.input_layernorm = nn.RMSNorm(width, shape.eps)
        self.post_attention_layernorm = nn.RMSNorm(width, shape.eps)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(width, width, bias=False),
                "k_proj": nn.Linear(width, kv_width, bias=False),
                "v_proj": nn.Linear(width, kv_width, bias=False),
                "o_proj": nn.Linear(width, width, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(width, shape.feed_forward, bias=False),
                "up_proj": nn.Linear(width, shape.feed_forward, bias=False),
                "down_proj": nn.Linear(shape.feed_forward, width, bias=False),
            }
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [batch, tokens, hidden]; cos, sin [tokens, head_dim]."""
        batch, tokens, width = x.shape
        h, attn = self.input_layernorm(x), self.self_attn
        q, k, v = (
            attn[name](h).view(batch, tokens, -1, self.shape.head_dim).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )  # [batch, heads, tokens, head_dim]
        shared = self.shape.heads // self.shape.kv_heads
        k, v = (rotate(k, cos, sin).repeat_interleave(shared, 1), v.repeat_interleave(shared, 1))
        mixed = attend(rotate(q, cos, sin), k, v)
        x = x + attn["o_proj"](mixed.transpose(1, 2).reshape(batch, tokens, width))
        h, mlp = self.post_attention_layernorm(x), self.mlp
        return x + mlp["down_proj"](functional.silu(mlp["gate_proj"](h)) * mlp["up_proj"](h))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, [batch, heads, tokens, head_dim].

    Written out: at 20 tokens, torch's fused one takes seven times as long backwards on a CPU.
    """
    future = torch.full((q.shape[2], q.shape[2]), -torch.inf, dtype=q.dtype, device=q.device).triu(
        1
    )
    scores = q @ k.transpose(-1, -2) * q.shape[3] ** -0.5 + future
    return scores.softmax(-1) @ v


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, halves paired as in Transformers."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Network(nn.Module):
    """Tokens to hidden states; names of the parameters are a Llama checkpoint's, less `model.`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, shape.eps)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 / (math.sqrt(2 * shape.layers) if last else 1))
        frequency = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = torch.outer(torch.arange(shape.context).float(), frequency)
        self.angles = torch.cat((angles, angles), -1)  # [context, head_dim]

    def forward(self, ids: Tensor) -> Tensor:
        """ids [batch, tokens]; returns [batch, tokens, hidden], normed."""
        angles = self.angles[: ids.shape[1]].to(ids.device)
        dtype = torch.bfloat16 if torch.is_autocast_enabled(ids.device.type) else torch.float32
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, [..., vocabulary]."""
        return functional.linear(hidden, self.embed_tokens.weight)
