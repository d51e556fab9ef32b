"""Count how many questions of a few kinds the shipped model answers right, with greedy decoding.

    python -m models.score

These are questions that the training text contains too: the score says how much the model has kept, not how
it does on anything new.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.tinycorpus import geography, knowledge

MODEL = Path(__file__).parent / "tandem-tiny"
LONGEST_ANSWER = 16

Question = tuple[str, str]  # what is asked, and what the answer must contain


def sums() -> Iterator[tuple[str, list[Question]]]:
    """Every sum of one kind up to ten, and plus up to twenty."""
    ten, twenty = range(11), range(21)
    yield "plus, up to 10 + 10", [(f"What is {a} plus {b}?", f"is {a + b}.") for a in ten for b in ten]
    yield "plus, up to 20 + 20", [(f"What is {a} plus {b}?", f"is {a + b}.") for a in twenty for b in twenty]
    yield "minus, up to 10", [(f"What is {a} minus {b}?", f"is {a - b}.") for a in ten for b in range(a + 1)]
    yield "times, up to 10 x 10", [(f"What is {a} times {b}?", f"is {a * b}.") for a in ten for b in ten]


def facts() -> Iterator[tuple[str, list[Question]]]:
    """The rows of some tables, each asked in the family's first way."""
    families = [*geography.FAMILIES, *knowledge.FAMILIES]
    for family in families:
        question = family.questions[0]
        if question.startswith(("What is the capital of", "What colour is", "What is the opposite of")):
            yield question, [(question.format(x=x), f"{y}.") for x, y in family.rows]


def right(model: Any, tokenizer: Any, questions: list[Question], system: str | None = None) -> int:
    """How many of `questions` get an answer that contains what it must, in any case of letters."""
    count = 0
    for question, expected in questions:
        chat = [{"role": "system", "content": system}] if system else []
        chat.append({"role": "user", "content": question})
        text = str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
        prompt = torch.tensor([tokenizer.encode(text)])
        output = model.generate(prompt, max_new_tokens=LONGEST_ANSWER, do_sample=False)
        answer = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)
        count += expected.lower() in answer.lower()
    return count


def main() -> None:
    """Print one line per kind of question."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    for name, questions in [*sums(), *facts()]:
        print(f"{name}: {right(model, tokenizer, questions)} of {len(questions)}", flush=True)
    name, questions = next(facts())
    count = right(model, tokenizer, questions, system="Answer with one word.")
    print(f"{name} (told to answer with one word): {count} of {len(questions)}")


if __name__ == "__main__":
    main()
