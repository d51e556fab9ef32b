"""Ask the demonstration model something with plain transformers, without Tandem.

    python -m models.ask "What is the capital of France?" "And of Italy?"

The arguments are the user's messages of one chat, in order. Answers are greedy.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = Path(__file__).parent / "tandem-tiny"


def main() -> None:
    """Parse the flags, print each message and its answer."""
    parser = argparse.ArgumentParser(description="Ask the demonstration model something.")
    parser.add_argument("messages", nargs="+", help="the user's messages, in order")
    parser.add_argument("--system", help="system message")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--max-tokens", type=int, default=300)
    flags = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(flags.model)
    model: Any = AutoModelForCausalLM.from_pretrained(flags.model, dtype=torch.float32)
    chat = [{"role": "system", "content": flags.system}] if flags.system else []
    for message in flags.messages:
        chat.append({"role": "user", "content": message})
        text = str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
        prompt = torch.tensor([tokenizer.encode(text)])
        output = model.generate(prompt, max_new_tokens=flags.max_tokens, do_sample=False)
        answer = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True)
        print(f"> {message}\n{answer}\n")
        chat.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    main()
