"""do: reinforce with tools: answers of several turns from the recipe in the repository, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dacheng import yaml_text
from dacheng.align.reinforce.settings import ReinforceConfig
from dacheng.align.tools import Calculator, ToolsConfig
from dacheng.cli.train import train
from dacheng.errors import UsageError
from dacheng.formats.json_files import write_json
from dacheng.formats.model_directory import save_model
from dacheng.life.expand import load_recipe
from dacheng.models.decoder import Decoder
from dacheng.models.traits import DecoderTraits
from dacheng.stages.reinforce import Config
from dacheng.text import train_tokenizer

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "align" / "tools.yaml"


class Shout:
    """A tool of a recipe's own."""

    name, description = "shout", "Says it louder."
    parameters = {"type": "object", "properties": {"text": {"type": "string"}}}  # noqa: RUF012

    def __call__(self, **arguments):
        return str(arguments["text"]).upper()


@pytest.fixture(scope="module")
def caller(tmp_path_factory):
    """A model directory: it writes the call <calc>6*7</calc>, whatever comes, and ends after the result."""
    tokenizer = train_tokenizer(["ab"], vocab_size=258, min_frequency=1 << 30)  # bytes
    size = tokenizer.vocab_size
    traits = DecoderTraits(
        vocab_size=size, width=size, layers=1, heads=1, max_positions=96, mlp_width=8, tied_head=False
    )
    model = Decoder(traits).init_weights(torch.Generator().manual_seed(0))
    follows = dict(zip("=<6*7", "<6*7>")) | {"]": "\n"}
    ids = {character: tokenizer.encode(character)[0] for character in set(follows) | set(follows.values())}
    with torch.no_grad():  # a table of what follows what: the blocks add nothing between one-hot rows and the head
        for parameter in model.blocks.parameters():
            parameter.zero_()
        model.embed.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        for before, after in follows.items():
            model.lm_head.weight[ids[after], ids[before]] = 4.0
        model.lm_head.weight[tokenizer.eos_id, ids["\n"]] = 4.0
    return save_model(tmp_path_factory.mktemp("caller") / "base", model, tokenizer)


@pytest.fixture
def recipe(tmp_path):
    """The recipe in the repository without its fine-tuning, which a model that calls already does not need."""
    values = {name: part for name, part in yaml_text.read_mapping(RECIPE).items() if name != "sft"}
    write_json(tmp_path / "tools.yaml", values)  # JSON is YAML
    return tmp_path / "tools.yaml"


def small(base, *more):
    """Two steps of it, with marks that the model writes."""
    prompts = base.parent / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{n}=", "answer": "42"}) + "\n" for n in range(4)))
    return (f"reinforce.model={base}", f"reinforce.prompts=[{prompts}]", f"reinforce.held_out=[{prompts}]",
            'reinforce.tools={opening: "<", closing: ">", before: "[", after: "]"}', "reinforce.steps=2",
            "reinforce.minutes=null", "reinforce.group=4", "reinforce.prompts_per_step=2", "reinforce.max_tokens=20",
            "reinforce.adapter=2", *more)  # fmt: skip


def test_the_recipe_trains_on_answers_with_calls(recipe, caller, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train(recipe, *small(caller), out=tmp_path / "run", json=True) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    figures = stage["artifact"]["metrics"]["figures"]
    assert figures["tools/call_frequency"] > 0.5 and figures["completions/tool_tokens"] > 2  # "[42]" is four bytes
    folder = Path(stage["artifact"]["path"]).parent
    said = [text for texts in json.loads((folder / "before.json").read_text())["texts"] for text in texts]
    assert any(text.startswith("<6*7>[42]") for text in said)  # held-out answers are written with the tool as well
    assert stage["artifact"]["metrics"]["reward_before"]["estimate"] > 0.3
    assert "Answers with a call of a tool" in (folder / "report.html").read_text()
    rollouts = [json.loads(line) for line in (folder / "training/rollouts/rollouts.jsonl").read_text().splitlines()]
    assert rollouts


def test_the_recipe_teaches_calls_before_it_rewards_answers():
    life = load_recipe(RECIPE)
    assert [(node.do, node.inputs) for node in life.nodes] == [("sft", {}), ("reinforce", {"model": "sft"})]
    assert life.nodes[-1].config.tools == ToolsConfig()


def test_a_life_from_before_there_were_tools_is_the_same_life():
    without, marked = ReinforceConfig(steps=2), ReinforceConfig(steps=2, tools=ToolsConfig())
    assert "tools" not in without.identity() and "tools" not in Config(steps=2, prompts=("x",)).identity()
    assert marked.identity()["tools"]["use"] == ["calculator"]
    assert marked.rollout_identity() != without.rollout_identity()  # other answers: no resume across
    assert marked.sampling.stop == ("</calc>",) and without.sampling.stop == ()


def test_tools_of_ones_own():
    shouting = ToolsConfig(use=(f"{__name__}:Shout",)).turns()
    assert shouting("<calc>so</calc>") == "<result>SO</result>"
    both = ToolsConfig(use=("calculator", f"{__name__}:Shout"), json_calls=True).turns()
    assert both('<calc>{"name": "calculator", "arguments": {"expression": "6*7"}}</calc>') == "<result>42</result>"
    assert isinstance(both.tools[0], Calculator)


@pytest.mark.parametrize(
    ("tools", "field", "remedy"),
    [
        ("{use: [calculater]}", "reinforce.tools.use", "did you mean calculator"),
        ("{use: []}", "reinforce.tools.use", "use: [calculator]"),
        ('{opening: ""}', "reinforce.tools.opening", "<calc>"),
        ("{use: [calculator, a:b]}", "reinforce.tools.json_calls", "json_calls: true"),
        ("{us: [calculator]}", "reinforce.tools.us", "use"),
        ("{use: [json:loads]}", "tools.use", "a tool has name"),
        ("{use: [no_such_module:Tool]}", "tools.use", "install it"),
    ],
)
def test_what_is_no_tool_is_refused_before_the_model_is_read(
    recipe, caller, tmp_path, monkeypatch, tools, field, remedy
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        train(recipe, *small(caller, f"reinforce.tools={tools}"), out=tmp_path / "run", json=True)
    assert caught.value.field == field and remedy in str(caught.value.remedy)


def test_processes_write_no_answers_with_tools():
    with pytest.raises(UsageError, match="in this process"):
        ReinforceConfig(steps=2, tools=ToolsConfig(), workers=2)
