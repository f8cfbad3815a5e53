"""How a question is put to a model together with a recording: the published templates, as data."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from alm_jax.errors import UserError

AUDIO_MARKER = "<|AUDIO|>"
"""Marks the place of the recording's vectors in a template; it is no token of the prompt."""

TemplateName = Literal["plain", "pengi", "qwen_audio", "chatml", "alpaca", "speechgpt"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
    """The text before an answer, and the token that ends the answer."""

    text: str
    """Text with one `AUDIO_MARKER`, and ``{question}`` where the question goes."""
    tasks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Texts by task name: a question that is a task's name is replaced by the task's published words."""
    needs_question: bool = True
    """Whether the template requires a question."""
    special_tokens: tuple[str, ...] = ()
    """Special tokens that the template needs."""
    starts_text: bool = False
    """Whether the start token that a tokenizer puts before a text, if any, comes before this template's start."""
    end_token: str | None = None
    """Token that ends the answer; None: the tokenizer's own end token."""


TEMPLATES: Mapping[TemplateName, Template] = {
    # Recording, then question, unchanged.
    "plain": Template(text="<|AUDIO|>{question}", needs_question=False),
    # Pengi (Deshmukh et al. 2023, arXiv 2305.11834, table 1): the recording's prefix, then the prompt's.
    "pengi": Template(
        text="<|AUDIO|>{question}",
        tasks={
            "caption": "<|AUDIO|>generate audio caption",
            "metadata": "<|AUDIO|>generate metadata",
            "class": "<|AUDIO|>this is a sound of",
        },
    ),
    # Qwen-Audio (Chu et al. 2023, arXiv 2311.07919, section 3.2): start, language of the recording, task, language of
    # the answer, time stamps, kind of output; the strings of its evaluation.
    "qwen_audio": Template(
        text="<audio><|AUDIO|></audio><|startofanalysis|><|en|><|question|>{question}<|answer|>",
        tasks={
            "caption": (
                "<audio><|AUDIO|></audio>"
                "<|startofanalysis|><|unknown|><|caption|><|en|><|notimestamps|><|caption_clotho|>"
            ),
            "transcribe": (
                "<audio><|AUDIO|></audio>"
                "<|startoftranscript|><|en|><|transcribe|><|en|><|notimestamps|><|wo_itn|>"
            ),
        },
        special_tokens=(
            "<audio>",
            "</audio>",
            "<|startofanalysis|>",
            "<|startoftranscript|>",
            "<|en|>",
            "<|unknown|>",
            "<|caption|>",
            "<|transcribe|>",
            "<|question|>",
            "<|answer|>",
            "<|notimestamps|>",
            "<|caption_clotho|>",
            "<|wo_itn|>",
        ),
    ),
    # Qwen2-Audio's chat (Chu et al. 2024, arXiv 2407.10759), as the template of transformers' Qwen2AudioProcessor
    # writes one recording and a text to the assistant.
    "chatml": Template(
        text=(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nAudio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\n{question}<|im_end|>\n"
            "<|im_start|>assistant\n"
        ),
        needs_question=False,
        special_tokens=("<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|audio_eos|>", AUDIO_MARKER),
        end_token="<|im_end|>",
    ),
    # LTU (Gong et al. 2023, arXiv 2305.10790), ``alpaca_short``: the recording comes even before the start token.
    "alpaca": Template(text="<|AUDIO|>### Instruction:\n{question}\n\n### Response:\n", starts_text=True),
    # SpeechGPT (Zhang et al. 2023, arXiv 2305.11000), its cross-modal instructions.
    "speechgpt": Template(
        text="[Human]: {question} This is input: <|AUDIO|><eoh> [SpeechGPT]: ",
        special_tokens=("<eoh>", "<eoa>"),
        starts_text=True,
        end_token="<eoa>",
    ),
}


def render(name: TemplateName, question: str) -> str:
    """Returns the text before the answer, with its one `AUDIO_MARKER`.

    Raises:
      UserError: the template needs a question and there is none, or the question holds the marker.
    """
    template = TEMPLATES[name]
    if template.needs_question and not question.strip():
        names = f", or one of its tasks: {', '.join(template.tasks)}" if template.tasks else ""
        raise UserError(f"the template {name!r} needs a question and has none; give one{names}")
    if AUDIO_MARKER in question:
        raise UserError(f"the question {question!r} holds {AUDIO_MARKER}, whose place the template decides")
    # Not str.format: a question may contain braces.
    return template.tasks.get(question, template.text).replace("{question}", question)
