"""``alm generate CHECKPOINT --audio FILE ... --prompt TEXT``: write text about recordings with a trained model."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from alm_jax.cli.arguments import Parser
from alm_jax.errors import UserError
from alm_jax.run.generate import Request, answer, choose_strategy


def run(args: Sequence[str]) -> None:
    """The command."""
    parser = Parser("generate", "Write text about recordings with a trained model.")
    parser.add_argument(
        "checkpoint",
        help="the run folder of a model with a language model (RUN@STEP for one step), or an imported Qwen2-Audio",
    )
    parser.add_argument(
        "--audio", type=Path, nargs="+", required=True, help="recordings; each gets one answer"
    )
    parser.add_argument("--prompt", help="the question (default: the first question of the run's config)")
    parser.add_argument(
        "--beams", type=int, help="use beam search with this many beams instead of greedy decoding"
    )
    parser.add_argument("--temperature", type=float, help="sample tokens, with logits divided by this")
    parser.add_argument("--top-k", type=int, help="sample from this many of the most likely tokens")
    parser.add_argument(
        "--top-p", type=float, help="sample from the most likely tokens with this total probability"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    parser.add_argument(
        "--max-new-tokens", type=int, help="maximum tokens of an answer (default: as in the run's training)"
    )
    parser.add_argument(
        "--json", help="also write the answers as a JSON list to this file; -: print only the list"
    )
    own = parser.parse_args(args)
    if own.max_new_tokens is not None and own.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is {own.max_new_tokens}; it must be at least 1")
    request = Request(
        audio=tuple(own.audio),
        prompt=own.prompt,
        strategy=choose_strategy(own.beams, own.temperature, own.top_k, own.top_p),
        seed=own.seed,
        max_new_tokens=own.max_new_tokens,
    )
    answers = answer(own.checkpoint, request)
    text = json.dumps([dataclasses.asdict(found) for found in answers], indent=2, ensure_ascii=False)
    if own.json == "-":
        print(text)
        return
    for found in answers:
        print(f"{found.audio}: {found.text}")
    if own.json:
        Path(own.json).write_text(text + "\n", encoding="utf-8")
