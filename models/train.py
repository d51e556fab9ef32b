"""Train the demonstration model: tokenizer first, then the weights, all from generated text.

    nice -n 10 python -m models.train --out models/tandem-tiny

Writes a folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from models.tinycorpus.dialogue import Document, documents
from models.tinytrain.loop import Schedule, train
from models.tinytrain.packing import batches, encode
from models.tinytrain.tokenizer import END_OF_TEXT, IM_END, for_transformers, token_id, train_tokenizer

VOCAB_SIZE = 4096
CONTEXT_LENGTH = 4096
TOKENS_PER_BATCH = 4096
TOKENIZER_DOCUMENTS = 30_000
HELD_OUT_SEED_OFFSET = 1_000_000


def _strings(document: Document) -> list[str]:
    return [document.text] if document.text else [message["content"] for message in document.messages]


def new_model(*, vocab_size: int, end_ids: list[int], pad_id: int) -> LlamaForCausalLM:
    """An untrained model of the shape that ships."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_ids[0],
        pad_token_id=pad_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=end_ids, pad_token_id=pad_id, bos_token_id=None
    )
    return model


def main() -> None:
    """Parse the flags, train, save."""
    parser = argparse.ArgumentParser(description="Train the demonstration model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--documents", type=int, default=100_000, help="number of training documents")
    parser.add_argument("--steps", type=int, default=3000, help=f"updates, each on {TOKENS_PER_BATCH} tokens")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="stop earlier, well annealed, after this time"
    )
    parser.add_argument("--start", type=Path, help="folder of a model to go on from, with its tokenizer")
    parser.add_argument("--rate", type=float, default=1.0, help="learning rate relative to the usual one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()

    torch.set_num_threads(flags.threads)
    torch.manual_seed(flags.seed)
    if flags.start:
        tokenizer = Tokenizer.from_file(str(flags.start / "tokenizer.json"))
    else:
        sample = documents(flags.seed, TOKENIZER_DOCUMENTS)
        texts = (text for document in sample for text in _strings(document))
        tokenizer = train_tokenizer(texts, vocab_size=VOCAB_SIZE)
    for_transformers(tokenizer, context_length=CONTEXT_LENGTH).save_pretrained(flags.out)

    rows = batches(
        encode(tokenizer, documents(flags.seed, flags.documents)),
        tokens_per_batch=TOKENS_PER_BATCH,
        seed=flags.seed,
    )
    unseen = documents(flags.seed + HELD_OUT_SEED_OFFSET, 2_000)
    held_out = list(islice(batches(encode(tokenizer, unseen), tokens_per_batch=TOKENS_PER_BATCH, seed=0), 12))
    print(
        f"vocabulary {tokenizer.get_vocab_size()}, {len(rows)} batches of {TOKENS_PER_BATCH} tokens",
        flush=True,
    )

    if flags.start:
        model = LlamaForCausalLM.from_pretrained(flags.start, dtype=torch.float32)
    else:
        ends = [token_id(tokenizer, IM_END), token_id(tokenizer, END_OF_TEXT)]
        model = new_model(vocab_size=tokenizer.get_vocab_size(), end_ids=ends, pad_id=ends[1])
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters", flush=True)
    schedule = Schedule(steps=flags.steps, minutes=flags.minutes, rate=flags.rate)
    train(model, rows, held_out, schedule, flags.out)


if __name__ == "__main__":
    main()
