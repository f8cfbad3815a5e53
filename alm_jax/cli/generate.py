"""``alm generate CHECKPOINT --audio FILE ... --prompt TEXT``: what a trained model writes about recordings."""

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
        help="a run folder of two heads (RUN@STEP for one of its steps), or an imported Qwen2-Audio",
    )
    parser.add_argument("--audio", type=Path, nargs="+", required=True, help="recordings; one answer each")
    parser.add_argument("--prompt", help="the question; by default the first that the run's config asks")
    parser.add_argument("--beams", type=int, help="beam search with so many texts open, not greedy decoding")
    parser.add_argument("--temperature", type=float, help="draw tokens, with logits divided by this")
    parser.add_argument("--top-k", type=int, help="draw from so many of the likeliest tokens")
    parser.add_argument("--top-p", type=float, help="draw from the likeliest tokens of this probability")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument(
        "--max-new-tokens", type=int, help="tokens of the longest answer; by default as in the run's training"
    )
    parser.add_argument("--json", help="write the answers as a JSON list to this file, or - for stdout")
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
