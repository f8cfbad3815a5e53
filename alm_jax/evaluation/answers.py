"""What two heads write of recordings, and how much of it is right."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alm_jax import batch as contract
from alm_jax.models.generated import Generated
from alm_jax.models.generation import GREEDY, Strategy, generate
from alm_jax.models.two_heads import TwoHeadsConfig, hear, open_answers, predict
from alm_jax.nn.language_model import head_kernel, project
from alm_jax.objectives.language_modeling import compute_clips, read_prompts


@functools.partial(
    jax.jit, static_argnums=0, static_argnames=("num_new_tokens", "end_id", "pad_id", "strategy")
)
def write_answers(
    config: TwoHeadsConfig,
    variables: dict[str, Any],
    batch: dict[str, Array],
    *,
    num_new_tokens: int,
    end_id: int,
    pad_id: int,
    strategy: Strategy = GREEDY,
    key: Array | None = None,
) -> Generated:
    """What the model answers each row of a batch; the batch's own answers are not read.

    The likeliest word, one after the other, or as ``strategy`` says, which may draw by ``key``.
    """
    heard = hear(config, variables, *compute_clips(config, batch))
    opening = open_answers(config, variables, heard, read_prompts(batch))
    return generate(
        *opening[:5],
        num_new_tokens=num_new_tokens,
        end_id=end_id,
        pad_id=pad_id,
        strategy=strategy,
        key=key,
        dtype=config.compute_dtype,
        **opening.options,
    )


@functools.partial(jax.jit, static_argnums=0)
def count_right_tokens(
    config: TwoHeadsConfig, variables: dict[str, Any], batch: dict[str, Array]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Tokens of the answers that are the likeliest after those before them, which are given, and all their tokens."""
    heard = hear(config, variables, *compute_clips(config, batch))
    predicted = predict(
        config, variables, heard, read_prompts(batch), batch[contract.TEXT_IDS], batch[contract.TEXT_MASK]
    )
    kernel, tied = head_kernel(config.language_model, variables["params"]["language_model"])
    # Row by row, so that the logits of a batch are never there at once.
    likeliest = jax.lax.map(
        lambda states: jnp.argmax(project(states, kernel, tied=tied), axis=-1), predicted.states
    )
    counts = predicted.mask & batch[contract.MASK][:, None]
    right = counts & (likeliest == predicted.labels)
    return jnp.sum(right, dtype=jnp.float32), jnp.sum(counts, dtype=jnp.float32)


def normalise(answer: str) -> str:
    """An answer without case, punctuation, articles and needless spaces, as SQuAD's exact match has it."""
    words = re.sub(r"[^\w\s]", " ", answer.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))
