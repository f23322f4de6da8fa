"""Rewards by name, from models and from user functions, and how failures are handled."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from minimind_trl.errors import InputError
from minimind_trl.models import MiniMindForCausalLM, MiniMindForSequenceClassification
from minimind_trl.rewards import REWARDS, Reward, RewardModel, declared_range, load_rewards
from minimind_trl.tokenization import tiny_tokenizer
from tests.conftest import small_config

CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def values(spec: str, *texts: str, **columns) -> list[float]:
    [reward], _ = load_rewards([spec])
    ids = [text.split() for text in texts]
    return reward(prompts=["?"] * len(texts), completions=[said(t) for t in texts], completion_ids=ids, **columns)


@pytest.mark.parametrize(
    ("spec", "text", "columns", "expected"),
    [
        ("exact_match", "<think>\nhm\n</think>\n\n  a  b ", {"answer": "a b"}, 1),
        ("exact_match", "a b c", {"answer": "a b"}, 0),
        ("position_match", "a x c d", {"answer": "a b c"}, 0.5),
        ("math_accuracy", r"so it is \boxed{\frac{1}{2}}", {"answer": "0.5"}, 1),
        ("math_accuracy", "the answer is 42", {"answer": "6 * 7 = 42\n#### 42"}, 1),
        ("math_accuracy", "the answer is 41", {"answer": "The answer is: 42"}, 0),
        ("math_accuracy", "42", {"answer": "no idea"}, None),
        ("regex:pattern='a{1,2}b.*'", "aab\nc", {}, 1),
        ("regex:pattern=ab", "abc", {}, 0),
        ("think_format", "<think>\nhm\n</think>\n4", {}, 1),
        ("think_format", "4", {}, 0),
        ("tag_count", "<think>hm</think><answer>4", {}, 0.75),
        ("tag_count:tags=<a> <b>", "<a><a>", {}, 0),
        ("length:low=2,high=3", "one two", {}, 1),
        ("length:low=2,high=3,outside=-1", "one", {}, -1),
        ("length:low=4,high=9,unit=characters", " four ", {}, 1),
        # of 6 trigrams the last 3 repeat the first: min(0.5, 2 * 0.5 * 1/2)
        ("repetition_penalty", "a b c a b c a b", {}, -0.5),
        ("repetition_penalty:ngram=1,cap=2", "a b a c", {}, -1),
        ("repetition_penalty", "a b", {}, 0),
        ("thinking", "no reasoning", {}, 0),
        ("thinking:low=2,high=9", "<think>hmm</think>4", {}, 1.25),
        ("thinking:low=9,high=99", "hm</think>4</think>", {}, -0.75),
        ("tool_calls", f"{CALL} it is 1,000.0 apples", {"gt": ["1000", "apples", "pears"]}, 2 / 3),
        ("tool_calls", f"{CALL} 3", {"gt": ["3"], "tools": '[{"function": {"name": "sub"}}]'}, 0),
        ("tool_calls", "<tool_call>{not json</tool_call> 3", {"gt": ["3"]}, 0),
        ("tool_calls", f"{CALL}", {"gt": ["add"]}, 0),
    ],
)
def test_a_named_reward(spec, text, columns, expected):
    [value] = values(spec, text, **{name: [column] for name, column in columns.items()})
    assert value == (expected if expected is None else pytest.approx(expected))


OPEN, CLOSED = "<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n"
FORM = "regex:pattern='<think>.*</think>\\s*\\d'"


@pytest.mark.parametrize(
    ("spec", "prompt", "text", "expected"),
    [
        ("think_format", OPEN, "hm\n</think>\n4", 1),
        ("think_format", OPEN, "hm", 0),
        ("think_format", OPEN, "<think>\nhm\n</think>\n4", 0),  # twice
        ("think_format", CLOSED, "4", 1),
        ("think_format", CLOSED, "<think>\nhm\n</think>\n4", 0),
        ("think_format", "what is <think>?", "hm\n</think>\n4", 0),
        ("tag_count", OPEN, "hm</think><answer>4</answer>", 1),
        ("tag_count", OPEN, "hm", 0.25),
        (FORM, OPEN, "hm\n</think>\n\n4", 1),
        (FORM, "?", "hm\n</think>\n\n4", 0),
        ("regex:pattern='\\d'", CLOSED, "4", 1),
        ("thinking:low=2,high=9", OPEN, "hmm</think>4", 1.25),
    ],
)
def test_the_think_block_may_begin_in_the_prompt(spec, prompt, text, expected):
    """The prompt is text, or messages with the trainer's `rendered_prompts`."""
    [reward], _ = load_rewards([spec])
    shown = {"completions": [said(text)], "completion_ids": [[1]]}
    assert reward(prompts=[prompt], **shown) == [expected]
    messages = [[{"role": "user", "content": "?"}]]
    assert reward(prompts=messages, rendered_prompts=[prompt], **shown) == [expected]


def test_the_range_of_a_weighted_sum():
    rewards, _ = load_rewards(["exact_match", "repetition_penalty", "length:inside=1,outside=-1"])
    assert declared_range(rewards, [2.0, 1.0, -1.0]) == (-1.5, 3.0)
    assert declared_range([lambda: None], [0.0]) == (0.0, 0.0)
    assert declared_range([*rewards, lambda: None], [1.0, 1.0, 1.0, 1.0]) == (-math.inf, math.inf)


def test_reasoning_gym_scores_its_own_tasks():
    gym = pytest.importorskip("reasoning_gym")
    [row] = gym.create_dataset("leg_counting", size=1, seed=1)
    columns = {"answer": [row["answer"]] * 2, "metadata": [row["metadata"]] * 2}
    assert values("reasoning_gym", row["answer"], "no idea", **columns) == [1, 0]


def test_values_stay_within_the_declared_range():
    """Every named reward on texts of all kinds; `Reward` itself checks the range."""
    texts = ["", "<think>", "a " * 50, f"{CALL}", "<think>x</think><answer>1</answer>", "\\boxed{1}", "1 2 1 2 1 2 1 2"]
    columns = {"answer": ["1"] * len(texts), "gt": [["1"]] * len(texts)}
    columns["expected_calls"] = [[{"name": "f", "arguments": {"x": 1}}]] * len(texts)
    for name in REWARDS.keys() - {"reasoning_gym"}:
        spec = f"{name}:pattern=.*" if name == "regex" else name
        assert len(values(spec, *texts, **columns)) == len(texts), name


@pytest.mark.parametrize(
    ("specs", "weights", "message"),
    [
        ([], None, "no reward: give --reward_funcs"),
        (["exactmatch"], None, "no such reward; did you mean 'exact_match'?"),
        (["length:lo=3"], None, "no parameter 'lo'; did you mean 'low'?"),
        (["length:low=abc"], None, "valid integer"),
        (["length:low"], None, "'low' is not name=value"),
        (["regex"], None, "needs pattern"),
        (["regex:pattern=("], None, None),
        (["no_such_module:f"], None, "cannot import 'no_such_module'"),
        (["json:dump_s"], None, "json has no function 'dump_s'; did you mean 'dumps'?"),
        (["minimind3"], None, "minimind3:reward_model=PATH"),
        (["exact_match", "exact_match"], None, "exact_match is given twice"),
        (["exact_match"], [1.0, 2.0], "--reward_weights has 2 values, --reward_funcs 1"),
        (["/no/such/folder,clip=2"], None, "reward"),
    ],
)
def test_invalid_specs_are_refused(specs, weights, message):
    if message is None:
        with pytest.raises(InputError, match="is not a regular expression"):
            values(specs[0], "x")
        return
    with pytest.raises(InputError) as error:
        load_rewards(specs, weights)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda n: [math.nan] * n, "reward mine returned nan, not a finite number or None"),
        (lambda n: ["high"] * n, "reward mine returned 'high', not a finite number"),
        (lambda n: [1.0], "reward mine returned 1 values for 2 completions"),
        (lambda n: 1.0, "reward mine returned 1.0, not a list"),
        (lambda n: [5.0] * n, "reward mine returned 5, outside its range [0, 1]"),
    ],
)
def test_an_invalid_result_is_an_error_that_names_the_function(answer, message):
    reward = Reward(lambda prompts, completions, **_: answer(len(prompts)), "mine", 0, 1)
    with pytest.raises(InputError) as error:
        reward(prompts=["p", "q"], completions=["c", "d"])
    assert message in str(error.value)


def test_an_error_names_the_row_on_which_the_function_raised():
    def mine(prompts, completions, answer, **_):
        return [1 / int(right) for right in answer]

    reward = Reward(mine, "mine")
    assert reward.columns() == ["answer"]
    with pytest.raises(InputError, match=r"reward mine raised ZeroDivisionError: .*; for the completion 'two' of 'q'"):
        reward(prompts=["p", "q"], completions=["one", "two"], answer=["1", "0"])


@pytest.mark.parametrize(
    ("on_error", "scores", "noted"),
    [("note", [None] * 3, ["'two' of 'say 3'"]), ("none", [None, 1.0, None], ["'one' of 'say 1'", "'two' of 'say 3'"])],
)
def test_failures_can_be_noted_instead_of_raised(on_error, scores, noted):
    """For the whole batch or per completion; one completion gives NaN, one calls exit."""

    def mine(prompts, completions, answer, **_):
        return [float("nan") if right == "?" else exit(0) if right == "!" else float(right) for right in answer]

    reward = Reward(mine, "mine")
    reward.on_error = on_error
    prompts = [[{"role": "user", "content": f"say {n}"}] for n in (1, 2, 3)]
    assert reward(prompts=prompts, completions=["one", "ok", "two"], answer=["?", "1", "!"]) == scores
    assert [str(error).split(" the completion ")[1] for error in reward.noted] == noted


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, labels, size in (("good", 1, 556), ("two", 2, 556), ("other", 1, 300)):
        config = small_config("dense3", vocab_size=size, num_labels=labels)
        MiniMindForSequenceClassification(config).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    MiniMindForCausalLM(small_config("dense3", vocab_size=556)).save_pretrained(folder / "words")
    tiny_tokenizer().save_pretrained(folder / "words")
    return folder


def test_a_reward_model_renders_conversations_as_its_trainer_did(folders):
    [reward], _ = load_rewards([str(folders / "good")])
    prompts = [[{"role": "user", "content": text}] for text in ("sort: 2 1", "a much longer question: 1 2 3?")]
    completions = [said(" 1 2"), said(" 3")]
    scores = reward(prompts=prompts, completions=completions, completion_ids=[[1], [1]])
    tokenizer, model = tiny_tokenizer(), MiniMindForSequenceClassification.from_pretrained(folders / "good")
    for score, prompt, completion in zip(scores, prompts, completions, strict=True):
        ids = tokenizer.apply_chat_template(prompt + completion, return_tensors="pt", return_dict=False)
        expected = model(ids).logits.item()
        assert score == pytest.approx(max(-3, min(3, expected)), abs=1e-5)


def test_scores_are_clipped_and_answer_share_scores_the_answer_alone(folders):
    prompt, whole = [[{"role": "user", "content": "?"}]], said("<think>x</think><answer>4</answer>")
    plain, only = RewardModel(str(folders / "good")), RewardModel(str(folders / "good"), answer_share=1.0)
    assert only(prompt, [whole]) == pytest.approx(plain(prompt, [said("4")]))
    clipped = RewardModel(str(folders / "good"), low=-1e-3, high=1e-3)
    assert abs(clipped(prompt, [whole])[0]) <= 1e-3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two", "has 2 labels; a reward model has one"),
        ("other", "has 300 tokens, its tokenizer 556: they do not belong together"),
        ("words", "is a MiniMindForCausalLM: train a reward model with recipes/reward.py"),
        ("nothing", "reward model"),
    ],
)
def test_other_models_are_refused_as_reward_models(folders, name, message):
    with pytest.raises(InputError) as error:
        load_rewards([f"reward_model:{folders / name}"])
    assert message in str(error.value)


def test_a_get_score_in_remote_code_runs_only_on_request(tmp_path):
    """As InternLM's reward models do."""
    (tmp_path / "modeling_counting.py").write_text(
        "import torch\n"
        "from transformers import PreTrainedConfig, PreTrainedModel\n\n\n"
        "class CountingConfig(PreTrainedConfig):\n"
        "    model_type = 'counting'\n"
        "    vocab_size = 556\n\n\n"
        "class CountingModel(PreTrainedModel):\n"
        "    config_class = CountingConfig\n\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config)\n"
        "        self.unit = torch.nn.Parameter(torch.ones(1))\n"
        "        self.post_init()\n\n"
        "    def get_score(self, tokenizer, messages):\n"
        "        return len(messages[-1]['content']) * self.unit.item()\n"
    )
    names = {"AutoConfig": "modeling_counting.CountingConfig", "AutoModel": "modeling_counting.CountingModel"}
    config = {"model_type": "counting", "architectures": ["CountingModel"], "auto_map": names, "vocab_size": 556}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"unit": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError):
        load_rewards([f"reward_model:{tmp_path}"])
    [reward], _ = load_rewards([f"reward_model:{tmp_path},trust_remote_code=true,high=5"])
    prompts = [[{"role": "user", "content": "?"}]] * 2
    assert reward(prompts=prompts, completions=[said("two"), said("longer than five")], completion_ids=[[1], [1]]) == [
        3,
        5,
    ]


def test_a_preset_is_minimind_s_own_mix(folders):
    rewards, weights = load_rewards([f"minimind3:reward_model={folders / 'good'}"], [2.0])
    assert [reward.__name__ for reward in rewards] == ["length", "thinking", "repetition_penalty", "reward_model"]
    assert weights == [2.0] * 4 and rewards[3].function.answer_only
    shown = {"prompts": [[{"role": "user", "content": "?"}]], "completion_ids": [[1]]}
    with_reasoning, without = ([said(text)] for text in ("<think>hm</think> 4", "4"))
    assert rewards[3](completions=with_reasoning, **shown) == rewards[3](completions=without, **shown)
    rewards, weights = load_rewards([f"minimind2:reward_model={folders / 'good'}"])
    assert weights == [1.0, 0.5, 1.0] and rewards[2].function.answer_share == 0.6
    form = "<think>\nhm\n</think>\n<answer>\n4\n</answer>"
    assert rewards[1](prompts=["?"], completions=[said(form)], completion_ids=[[1]]) == [1.0]


@pytest.mark.parametrize("value", [10**400, -(10**400), 10**5000], ids=["large", "low", "more digits than shown"])
def test_an_integer_too_large_for_a_float_is_not_finite(value):
    reward = Reward(lambda prompts, completions, **_: [value], "huge")
    with pytest.raises(
        InputError, match=r"reward huge returned .*, not a finite number or None, for the completion 'a'"
    ):
        reward(["?"], ["a"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("os:system", "os:system is part of Python .*, not a reward: .*prompts=..., completions=..."),
        ("builtins:max", "builtins:max is part of Python"),
        ("minimind_trl.data.quality:quality_score", "does not accept further columns .*: a reward is called as"),
    ],
)
def test_a_function_that_is_not_a_reward_is_refused(spec, message):
    with pytest.raises(InputError, match=message):
        load_rewards([spec])


def test_a_regular_expression_that_backtracks_endlessly_is_stopped(monkeypatch):
    monkeypatch.setattr("minimind_trl.patterns.SECONDS", 0.1)
    [reward], _ = load_rewards([r"regex:pattern='(a|aa)+b?'"])
    with pytest.raises(InputError, match=r"\(a\|aa\)\+b\?.*takes longer than 0.1 s on a completion of 61 characters"):
        reward(prompts=["?"], completions=["a" * 60 + "!"])
    assert reward(prompts=["?"], completions=["aab"]) == [1.0]


@pytest.mark.parametrize("value", ["[", "*b", "2024-13-01"])
def test_an_unreadable_parameter_is_refused(value):
    with pytest.raises(InputError, match="is not a value"):
        load_rewards([f"length:low={value}"])
