import json

from rich.console import Console

from ossia.train.data import Rendering, source_of
from ossia.train.data.preview import account_of, coloured, first_document, table

TURN = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Good day."}]


def test_what_is_learnt_is_marked(tmp_path, tokenizer):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"messages": TURN}) + "\n")
    rendering = Rendering(tokenizer=tokenizer, max_length=300)
    source = source_of([str(path), "demo"], seed=0)
    document = first_document(source, rendering)
    text = coloured(document, tokenizer, marks=True)
    assert text.plain.endswith("hello<|end|><|start|>assistant⟦<|channel|>final<|message|>Good day.<|return|>⟧")
    plain = coloured(document, tokenizer)
    assert plain.plain == tokenizer.decode(document.token_ids)
    spans = {plain.plain[span.start : span.end]: str(span.style) for span in plain.spans}
    assert spans["Good day."] == "green" and spans["hello"] == "dim" and spans["<|return|>"] == "bold green"


def test_the_accounts_are_a_table(tmp_path, tokenizer):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"messages": TURN}) + "\n")
    accounts = account_of(
        source_of([str(path), "demo"], seed=0), Rendering(tokenizer=tokenizer, max_length=2000), records=40
    )
    assert [became.records for became in accounts.values()] == [1, 40]
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    with console.file:
        console.print(table(accounts))
    text = console.export_text()
    assert "learnt" in text and f"{accounts['demo'].learnt:,}" in text and "data.jsonl" in text
