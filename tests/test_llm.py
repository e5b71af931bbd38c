"""The Python face: loading, asking, and what is said when either cannot be done."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.model.packed_ops import packed_kernels

import ossia
from ossia.config import Layout, ModelConfig
from ossia.errors import CheckpointError, HarmonyError, KernelError, RequestError, TokenizerError
from ossia.harmony.parse import Delta, MessageEnd
from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels import select
from ossia.llm import LLM
from ossia.model import memory
from ossia.model.checkpoint import open_checkpoint
from ossia.model.linear import MappedEmbedding
from ossia.model.random_weights import RandomWeights
from ossia.model.write import write_checkpoint

WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return ossia.load(tiny_model)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Tokenizer) -> Callable[..., None]:
    """Put words into the model's mouth: text with special tokens by name."""

    def script(text: str) -> None:
        ids: list[int] = []
        for piece in re.split(r"(<\|\w+\|>)", text):
            special = tiny_tokenizer.special.get(piece)
            ids += [special] if special is not None else tiny_tokenizer.encode(piece)
        monkeypatch.setattr("ossia.llm.generate", lambda *_, **__: iter(ids))

    return script


# -------------------------------------------------------------------- importing


def test_importing_ossia_loads_neither_torch_nor_anything_else_heavy() -> None:
    code = (
        "import sys, ossia; before = set(sys.modules); ossia.Sampling(); ossia.ModelConfig; ossia.harmony; "
        "heavy = {'torch', 'triton', 'numpy', 'fastapi', 'aiohttp', 'transformers', 'tokenizers', 'prompt_toolkit'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "assert not {'tiktoken', 'ossia.harmony'} & before, before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there() -> None:
    for name in ossia.__all__:
        assert getattr(ossia, name) is not None
        assert name in dir(ossia)
    with pytest.raises(AttributeError, match="module 'ossia' has no attribute 'nonsense'"):
        ossia.nonsense  # noqa: B018


def test_the_version_is_the_packages() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"].get("version", ossia.__version__) == ossia.__version__


# -------------------------------------------------------------------- rendering


def test_render_is_a_prompt_for_completion(tiny_tokenizer: Tokenizer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    ids = ossia.render(messages, tokenizer=tiny_tokenizer, tools=[WEATHER], effort="low", date="2025-06-28")
    text = tiny_tokenizer.decode(ids)
    assert text.endswith("<|start|>user<|message|>Hi<|end|><|start|>assistant")
    for part in ("Reasoning: low", "Current date: 2025-06-28", "# Instructions\n\nBe brief.", "type get_weather"):
        assert part in text
    assert ossia.render("Hi", tokenizer=tiny_tokenizer) == ossia.render(messages[1:], tokenizer=tiny_tokenizer)


# -------------------------------------------------------------------- asking


def test_chat_answers(llm: LLM) -> None:
    reply = llm.chat("What is 6 times 7?")
    assert (reply.final, reply.reasoning, reply.commentary) == ("42", "", "")
    assert reply.finish_reason == "stop"
    assert reply.tool_calls == reply.assumed == ()
    prompt = ossia.render("What is 6 times 7?", tokenizer=llm.tokenizer)
    assert reply.usage.prompt_tokens == len(prompt)
    assert reply.usage.completion_tokens == len("CfinalM42R")
    assert reply.timings.prompt_seconds > 0
    assert reply.timings.tokens_per_second > 0
    json.dumps(reply.to_json())
    assert llm.chat([{"role": "user", "content": "?"}, reply.message, {"role": "user", "content": "!"}]).final == "42"


def test_the_answer_is_cut_at_max_tokens(llm: LLM) -> None:
    reply = llm.chat("?", max_tokens=8)
    assert (reply.final, reply.finish_reason, reply.usage.completion_tokens) == ("4", "length", 8)


def test_reasoning_answer_and_tokens_are_told_apart(llm: LLM, says: Callable[[str], None]) -> None:
    says("<|channel|>analysis<|message|>6*7<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>")
    reply = llm.chat("?")
    assert (reply.reasoning, reply.final, reply.usage.reasoning_tokens) == ("6*7", "42", 3)
    assert reply.message == {"role": "assistant", "content": "42", "reasoning": "6*7"}


def test_a_tool_call_and_its_result_go_round(llm: LLM, says: Callable[[str], None]) -> None:
    says(
        "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary<|message|>A moment.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        '{"city":"Rome"}<|call|>'
    )
    question = [{"role": "user", "content": "Weather in Rome?"}]
    reply = llm.chat(question, tools=[WEATHER])
    assert reply.finish_reason == "tool_calls"
    (call,) = reply.tool_calls
    assert call["function"] == {"name": "get_weather", "arguments": '{"city":"Rome"}'}
    assert (reply.reasoning, reply.commentary, reply.final) == ("Look.", "A moment.", "")
    result = {"role": "tool", "tool_call_id": call["id"], "content": "rain"}
    prompt = ossia.render([*question, reply.message, result], tokenizer=llm.tokenizer, tools=[WEATHER])
    text = llm.tokenizer.decode(prompt)
    assert "<|channel|>analysis<|message|>Look." in text
    assert "to=functions.get_weather" in text and '{"city":"Rome"}<|call|>' in text
    assert "rain<|end|><|start|>assistant" in text


def test_what_the_model_garbles_is_mended_and_told(llm: LLM, says: Callable[[str], None]) -> None:
    says("<|channel|>final<|message|>4<|end|><|start|>user<|message|>and?<|end|><|message|>2<|return|>")
    reply = llm.chat("?")
    assert reply.final == "4\n\n2"
    assert "a message as user is no part of the reply" in reply.assumed


def test_streaming_gives_the_events_as_they_come(llm: LLM) -> None:
    stream = llm.stream("?")
    events = iter(stream)
    text = next(event.text for event in events if isinstance(event, Delta))
    assert (text, stream.num_tokens) == ("4", 8)
    assert [type(event) for event in events] == [Delta, MessageEnd]
    assert stream.reply().final == "42"
    assert stream.reply().finish_reason == "stop"


def test_a_stream_that_is_left_early_still_makes_a_reply(llm: LLM) -> None:
    stream = llm.stream("?")
    next(event for event in stream if isinstance(event, Delta))
    reply = stream.reply()
    assert (reply.final, reply.finish_reason) == ("4", "interrupted")
    assert list(stream) == []
    assert llm.stream("?").reply().finish_reason == "interrupted"


def test_the_checkpoint_recommends_and_the_caller_decides(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[ossia.Sampling] = []

    def spy(_model: object, _prompt: object, sampling: ossia.Sampling, **_: object) -> Iterator[int]:
        used.append(sampling)
        return iter(())

    monkeypatch.setattr("ossia.llm.generate", spy)
    llm.chat("?")
    llm.chat("?", temperature=0.5, seed=3, max_tokens=7)
    llm.chat("?", sampling=ossia.Sampling(top_p=0.5, stop_ids=frozenset({1})), seed=4)
    special = llm.tokenizer.special
    ends = {special["<|return|>"], special["<|call|>"], special["<|endoftext|>"]}
    assert used == [
        ossia.Sampling(temperature=0, stop_ids=frozenset(ends)),
        ossia.Sampling(temperature=0.5, seed=3, max_tokens=7, stop_ids=frozenset(ends)),
        ossia.Sampling(temperature=1, top_p=0.5, seed=4, stop_ids=frozenset(ends | {1})),
    ]


def test_logits_and_generation_speak_in_ids(llm: LLM) -> None:
    prompt = ossia.render("?", tokenizer=llm.tokenizer)
    logits = llm.logits(prompt)
    assert (logits.shape, logits.dtype, logits.is_inference()) == ((len(prompt), 272), torch.float32, False)
    assert int(logits[-1].argmax()) == llm.tokenizer.special["<|channel|>"]
    answer = llm.generate(prompt, ossia.Sampling(temperature=0, max_tokens=3))
    assert list(answer)[1:] == list(b"fi")


def test_requests_that_cannot_be_honoured(llm: LLM) -> None:
    with pytest.raises(RequestError, match="tokens and the context 1024, answer included: shorten the prompt"):
        llm.chat("x" * 1000)
    with pytest.raises(RequestError, match="the prompt has 1025 tokens and the context 1024: shorten"):
        llm.logits([1] * 1025)
    assert llm.logits([1] * 1024).shape == (1024, 272)
    with pytest.raises(RequestError, match="the prompt is empty"):
        llm.logits([])
    with pytest.raises(RequestError, match="temperature is -1"):
        llm.chat("?", temperature=-1)
    with pytest.raises(HarmonyError, match="effort is 'enormous'"):
        llm.chat("?", effort="enormous")


# -------------------------------------------------------------------- loading


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def test_a_model_without_a_vocabulary_loads_but_does_not_chat(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    llm = ossia.load(copy)
    assert llm.logits([1]).shape == (1, 272)
    assert len(list(llm.generate([1], ossia.Sampling(max_tokens=2)))) == 2
    with pytest.raises(TokenizerError, match=r"copy has no tokenizer\.json and no o200k_base\.tiktoken"):
        llm.chat("?")


def test_a_foreign_vocabulary_is_named(copy: Path) -> None:
    raw = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    raw["added_tokens"].append({"id": 272, "content": "<|one_too_many|>", "special": True})
    (copy / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json has ids up to 272 and the model a vocabulary of 272"):
        ossia.load(copy).chat("?")
    (copy / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}', encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: model\.type is 'Unigram'"):
        ossia.load(copy).chat("?")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ossia.Sampling()),
        ('{"do_sample": true, "eos_token_id": [7], "pad_token_id": 1}', ossia.Sampling()),
        ('{"temperature": 0.7, "top_p": 0.9, "top_k": null}', ossia.Sampling(temperature=0.7, top_p=0.9)),
        ('{"do_sample": false, "temperature": 0.7}', ossia.Sampling(temperature=0)),
    ],
)
def test_sampling_is_what_the_checkpoint_recommends(copy: Path, content: str | None, expected: ossia.Sampling) -> None:
    path = copy / "generation_config.json"
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    assert ossia.load(copy).sampling == expected


def test_a_broken_recommendation_is_named(copy: Path) -> None:
    (copy / "generation_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: not valid JSON"):
        ossia.load(copy)
    (copy / "generation_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: expected a JSON object, found list"):
        ossia.load(copy)
    (copy / "generation_config.json").write_text('{"top_p": 3}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: top_p is 3"):
        ossia.load(copy)


def test_memory_that_runs_out_is_said_in_one_line(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(*_: object, **__: object) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    llm = ossia.load(tiny_model)
    with monkeypatch.context() as patch:
        patch.setattr("ossia.model.packed_cache.fill", too_much)
        with pytest.raises(
            CheckpointError, match=rf"{tiny_model}: memory on cpu ran out while [\d,]+ bytes .*bfloat16"
        ):
            ossia.load(tiny_model)
    with monkeypatch.context() as patch:
        patch.setattr("ossia.model.transformer.Transformer.forward", too_much)
        with pytest.raises(RequestError, match="memory ran out: shorten the prompt"):
            llm.chat("?")
        with pytest.raises(RequestError, match="memory ran out for the logits of 3 tokens: give fewer"):
            llm.logits([1, 2, 3])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), CheckpointError),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), CheckpointError),
        (RuntimeError("MPS backend out of memory"), CheckpointError),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), CheckpointError),
        (RuntimeError("shapes differ"), RuntimeError),
    ],
)
def test_other_failures_are_not_taken_for_memory(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("ossia.model.packed_cache.fill", fail)
    with pytest.raises(told):
        ossia.load(tiny_model)


def test_small_models_load_unpacked_in_float32_and_large_ones_packed(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ossia.load(tiny_model, kernels="torch")
    assert small.model.embedding.weight.dtype == torch.float32
    assert hasattr(small.model.layers[0].mlp.experts, "gate_up")
    monkeypatch.setattr("ossia.llm.SMALL_BYTES", 4 * 272 * 64)
    large = ossia.load(tiny_model, kernels="torch")
    assert large.model.embedding.weight.dtype == torch.bfloat16
    assert hasattr(large.model.layers[0].mlp.experts, "gate_up_blocks")
    assert large.chat("?").final == "42"
    large = ossia.load(tiny_model, kernels="torch", dtype=torch.float32)
    assert large.model.embedding.weight.dtype == torch.float32


def test_unpacking_changes_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    config = ModelConfig.from_json(tiny_model / "config.json")
    write_checkpoint(tmp_path / "random", config, RandomWeights(config, 1))
    unpacked = ossia.load(tmp_path / "random", kernels="torch").logits(list(range(20)))
    monkeypatch.setattr("ossia.llm.SMALL_BYTES", 0)
    packed = ossia.load(tmp_path / "random", kernels="torch", dtype=torch.float32).logits(list(range(20)))
    assert torch.equal(packed, unpacked)


def test_kernels_and_devices_that_cannot_be_had(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KernelError, match="unknown kernels 'fast': choose one of"):
        ossia.load(tiny_model, kernels="fast")
    with pytest.raises(KernelError, match="device 'quantum' cannot be used here"):
        ossia.load(tiny_model, device="quantum")
    monkeypatch.setenv("OSSIA_VERIFY", "attention,typo")
    with pytest.raises(KernelError, match="cannot verify unknown op 'typo'"):
        ossia.load(tiny_model)


def test_verification_is_asked_for_in_the_environment(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSSIA_VERIFY", "attention, moe")
    llm = ossia.load(tiny_model)
    verified = {op for op, source in llm.model.kernels.sources.items() if "verified" in source}
    assert verified == {"attention", "attention_paged", "experts", "experts_mxfp4", "experts_packed", "experts_exact"}
    assert llm.chat("?").final == "42"


def test_reference_kernels_answer_too(tiny_model: Path) -> None:
    assert ossia.load(tiny_model, kernels="reference").chat("?").final == "42"


# -------------------------------------------------------------------- the packed form


@pytest.fixture
def random_model(tiny_model: Path, tmp_path: Path) -> Path:
    """Random weights, of the shape of `tiny_model`."""
    config = ModelConfig.from_json(tiny_model / "config.json")
    write_checkpoint(tmp_path / "random", config, RandomWeights(config, 1))
    return tmp_path / "random"


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuple[int | None, str | None]]]:
    """Slow kernels in the place of the native ones; what these were told of threads and instructions."""
    told: list[tuple[int | None, str | None]] = []
    monkeypatch.setattr(
        "ossia.llm.select",
        lambda choice, **rest: select(choice, **rest) if choice in ("torch", "reference") else packed_kernels(),
    )
    monkeypatch.setattr("ossia.llm.cpu.configure", lambda threads, isa: told.append((threads, isa)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    yield told
    torch.set_num_threads(threads)


IDS = list(range(0, 200, 7))


def packs(llm: LLM) -> bool:
    return isinstance(llm.model.embedding, MappedEmbedding)


@pytest.mark.parametrize("layout", ["hf", "original"])
def test_packed_is_the_same_model(
    random_model: Path, tmp_path: Path, packing: list[tuple[int | None, str | None]], layout: Layout
) -> None:
    checkpoint = open_checkpoint(random_model)
    write_checkpoint(tmp_path / "m", checkpoint.config, checkpoint, layout=layout)
    expected = ossia.load(tmp_path / "m", kernels="torch").logits(IDS)
    exact = ossia.load(tmp_path / "m", dense="bf16", threads=2, isa="plain")
    assert packs(exact)
    assert packing == [(2, "plain")]
    assert (exact.logits(IDS) - expected).abs().max() < 0.02  # Keys and values are held in BF16.
    quantised = ossia.load(tmp_path / "m", kernels="cpu").logits(IDS)
    error = (quantised - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert 1e-3 < float(error.median()) < 0.03


def test_packed_answers_and_leaves_the_threads_to_the_kernels(
    tiny_model: Path, packing: list[tuple[int | None, str | None]]
) -> None:
    torch.set_num_threads(2)
    assert ossia.load(tiny_model).chat("?").final == "42"
    assert torch.get_num_threads() == 1
    assert packing == [(None, None)]


@pytest.mark.usefixtures("packing")
def test_the_second_start_maps_what_the_first_packed(
    random_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ossia.model.packed_cache.SMALL_BYTES", 0)
    without = ossia.load(random_model, packed_cache=False).logits(IDS)
    assert not (tmp_path / "cache").exists()
    lines: list[str] = []
    assert torch.equal(ossia.load(random_model, report=lines.append).logits(IDS), without)
    with monkeypatch.context() as patch:
        patch.setattr("ossia.model.packed_cache.pieces", lambda *_: pytest.fail("packed again"))
        assert torch.equal(ossia.load(random_model, report=lines.append).logits(IDS), without)
    (path,) = (tmp_path / "cache" / "ossia" / "packed").iterdir()
    assert [line.split()[0] for line in lines] == ["packing", "packed"]
    assert all(str(path) in line for line in lines)


@pytest.mark.usefixtures("packing")
def test_what_happens_to_the_file_is_logged(random_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="ossia"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("ossia.model.packed_cache.SMALL_BYTES", 0)
        ossia.load(random_model)
    assert any(line.startswith(f"packing {random_model}, this once, into ") for line in caplog.messages)


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("options", [{"kernels": "torch"}, {"kernels": "reference"}, {"dtype": torch.float32}])
def test_who_asks_for_something_else_gets_it(random_model: Path, options: dict[str, object]) -> None:
    assert not packs(ossia.load(random_model, **options))  # type: ignore[arg-type]


@pytest.mark.usefixtures("packing")
def test_experts_that_are_not_packed_stay_with_torch(
    random_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = open_checkpoint(random_model)
    write_checkpoint(tmp_path / "dense", checkpoint.config, checkpoint, packed=False)
    with caplog.at_level("INFO", logger="ossia"):
        assert not packs(ossia.load(tmp_path / "dense"))
    assert f"{tmp_path}/dense: experts in BF16 are not packed, torch computes with them" in caplog.messages


@pytest.mark.usefixtures("packing")
def test_memory_is_looked_at_before_anything_is_loaded(random_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig.from_json(random_model / "config.json")
    whole, half = (memory.plan(config, context=context).total for context in (1024, 512))
    assert ossia.load(random_model, context=100).context == 100
    monkeypatch.setattr("ossia.model.memory.available_memory", lambda: whole)
    assert ossia.load(random_model).context == 1024
    monkeypatch.setattr("ossia.model.memory.available_memory", lambda: half)
    assert ossia.load(random_model).context == 512
    monkeypatch.setattr("ossia.model.packed_cache.pieces", lambda *_: pytest.fail("packed"))
    with pytest.raises(RequestError, match=r"not enough memory: .* what fits is a context of 512 tokens in bf16"):
        ossia.load(random_model, context=1000)
    monkeypatch.setattr("ossia.model.memory.available_memory", lambda: 1000)
    with pytest.raises(RequestError, match=r"not enough memory: .* no context fits"):
        ossia.load(random_model)


def test_the_context_is_kept_to(tiny_model: Path) -> None:
    llm = ossia.load(tiny_model, context=20, cache_type="q8")
    assert (llm.context, llm.cache_type) == (20, "q8")
    assert llm.logits([1] * 20).shape == (20, 272)
    with pytest.raises(RequestError, match="the prompt has 21 tokens and the context 20: shorten"):
        llm.logits([1] * 21)


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dense": "q4"}, KernelError, "unknown dense form 'q4': choose one of q8, bf16"),
        ({"context": 0}, RequestError, "context 0 is not to be had: this model takes 1 to 1,024 tokens"),
        ({"context": 2000}, RequestError, "context 2,000 is not to be had"),
        ({"cache_type": "q4"}, RequestError, "unknown cache type 'q4': choose one of bf16, q8"),
        ({"kernels": "torch", "threads": 0}, KernelError, "threads is 0: give 1 to 1024"),
        ({"kernels": "torch", "threads": 10_000}, KernelError, "threads is 10000: give 1 to 1024"),
        ({"kernels": "torch", "isa": "avx2"}, KernelError, "isa 'avx2' is for the native CPU kernels, which are not"),
    ],
)
def test_settings_that_cannot_be_had(
    tiny_model: Path, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ossia.load(tiny_model, **options)  # type: ignore[arg-type]


def test_torch_gets_the_threads_where_it_computes(tiny_model: Path) -> None:
    threads = torch.get_num_threads()
    try:
        ossia.load(tiny_model, kernels="torch", threads=threads + 1)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
