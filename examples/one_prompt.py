"""One prompt, walked through every stage of ossia: read this first, then run it.

    python examples/one_prompt.py "What is 17 + 25?"

Each stage prints what it hands to the next. Shapes: T tokens, D hidden, K experts a token, V vocabulary.
"""

import sys
from collections.abc import Callable

import torch

import ossia
from ossia.config import ModelConfig
from ossia.engine.loop import generate
from ossia.engine.request import Sampling
from ossia.harmony import Tokenizer, from_openai, render_completion
from ossia.kernels import select
from ossia.model import adapt
from ossia.model.attention import Packed
from ossia.model.layouts import parameter_shapes
from ossia.model.locate import demo_folder
from ossia.model.random_weights import RandomWeights
from ossia.model.transformer import Transformer
from ossia.reply import Stream


def main() -> None:
    """Walk the prompt on the command line, or a sum, through every stage."""
    prompt = " ".join(sys.argv[1:]) or "What is 17 + 25?"
    if any(demo_folder().glob("*.safetensors")):
        llm = ossia.load("demo")
        model, tokenizer, max_tokens = llm.model, llm.tokenizer, 300
    else:
        print("The demo model's weights are not here: a small random model stands in, and babbles.")
        (model, tokenizer), max_tokens = random_model(), 24

    stage("1. A conversation", "records, made from OpenAI's chat messages")
    conversation = from_openai([{"role": "user", "content": prompt}], effort="low")
    print(conversation.system)
    print(*conversation.messages, sep="\n")

    stage("2. Rendered", "the harmony format, up to where the assistant begins to write")
    token_ids = render_completion(conversation, tokenizer)
    print(tokenizer.decode(token_ids))

    stage("3. Tokens", f"{len(token_ids)} ids out of {model.config.vocab_size}; the last twelve")
    print(*(f"{token}:{tokenizer.decode([token])!r}" for token in token_ids[-12:]))

    stage("4. Through the model", "every token at once; what each layer's router chose for the last one")
    hooks = [
        block.mlp.router.register_forward_hook(show_choice(layer, model.config))
        for layer, block in enumerate(model.layers)
    ]
    with torch.inference_mode():
        x_TD = model.embedding(torch.tensor(token_ids))
        print(f"embedding       {tuple(x_TD.shape)}, the last row begins {shown(x_TD[-1, :4])}")
        positions_T = torch.arange(len(token_ids))
        logits_TV = model(torch.tensor(token_ids), positions_T, Packed(model.kernels, (len(token_ids),)))
    for hook in hooks:
        hook.remove()

    stage("5. Logits", "the five likeliest tokens to come next")
    top = logits_TV[-1].softmax(dim=-1).topk(5)
    for probability, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        print(f"{probability:7.2%}  {token}:{name(tokenizer, token)}")

    stage("6. Generated", "the likeliest token, again and again, with keys and values remembered")
    sampling = Sampling(temperature=0, max_tokens=max_tokens, stop_ids=tokenizer.stop_ids)
    answer = list(generate(model, token_ids, sampling))
    print(*(name(tokenizer, token) for token in answer))

    stage("7. Parsed", "what the tokens mean, as events while they come")
    stream = Stream(iter(answer), tokenizer, num_prompt_tokens=len(token_ids))
    for event in stream:
        print(event)

    stage("8. The reply", "what the caller gets; `ossia.load('demo').chat(prompt)` does all of this")
    reply = stream.reply()
    print(f"reasoning  {reply.reasoning!r}\nfinal      {reply.final!r}\nusage      {reply.usage}")


def show_choice(layer: int, config: ModelConfig) -> Callable[..., None]:
    """A hook for a router: it prints the experts chosen for the last token, and how they share it."""

    def hook(_module: torch.nn.Module, _inputs: object, logits_TE: torch.Tensor) -> None:
        logits_K, experts_K = logits_TE[-1].topk(config.experts_per_token)
        sees = f"the last {config.window(layer)}" if config.window(layer) else "all tokens"
        chosen = ", ".join(f"expert {e} {w:.0%}" for e, w in zip(experts_K.tolist(), logits_K.softmax(-1), strict=True))
        print(f"layer {layer:2}, sees {sees:12} {chosen}")

    return hook


def random_model() -> tuple[Transformer, Tokenizer]:
    """A model of the same kind that knows nothing, over a vocabulary of single bytes."""
    names = "<|endoftext|> <|return|> <|constrain|> <|channel|> <|start|> <|end|> <|message|> <|call|>".split()
    special = {name: 256 + n for n, name in enumerate(names)}
    ranks = {bytes([byte]): byte for byte in range(256)}
    tokenizer = Tokenizer(ranks=ranks, pattern=r"\s+|\S+", special=special, source="bytes")
    config = ModelConfig(
        num_hidden_layers=4,
        num_experts=8,
        experts_per_token=2,
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=96,
        head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    weights = RandomWeights(config, seed=0)
    tensors = ((name, weights[name]) for name in parameter_shapes(config, packed=True))
    model = adapt.build(config, select(), experts="mxfp4")
    return adapt.fill(model, tensors, dtype=torch.float32), tokenizer


def name(tokenizer: Tokenizer, token: int) -> str:
    """A token as text, in quotes."""
    return repr(tokenizer.token_bytes(token).decode(errors="replace"))


def shown(values: torch.Tensor) -> str:
    """A few numbers, short."""
    return ", ".join(f"{value:.3f}" for value in values.tolist())


def stage(title: str, note: str) -> None:
    """Head the output of a stage."""
    print(f"\n{title}\n{'─' * len(title)}  {note}\n")


if __name__ == "__main__":
    main()
