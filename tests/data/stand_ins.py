"""What a loopback Hub serves in place of the data sets that `data_configs/` names: their files, columns and value
shapes, with rows made up from word lists.

    with LoopbackHub() as hub:
        serve(hub)

Rows of a data set are distinct, but for the few that repeat in upstream's own. `LEAKS` rows of some sources repeat a
question of an evaluation set, for decontamination to find.
"""

import json
import re
from collections.abc import Callable, Iterator
from random import Random

from ..loopback_hub import LoopbackHub, Rows

LEAKS = 3
MINIMIND_REVISION = "312afb4f76391145c6902f765bb51691c09a12f5"  # pinned in data_configs/minimind/

_WORDS = {
    "name": """Ana Ben Carla Dmitri Elena Farid Grace Hugo Ines Jonas Keiko Liam Mona Nils Olga Pavel Rosa""",
    "thing": """apple bottle candle drum envelope flower guitar hammer jacket kettle lamp notebook pencil""",
    "noun": """river teacher window engine garden planet library market bridge doctor forest kitchen lesson machine
        mountain novel orchestra painter pilot recipe sailor school statue storm student theory tower train valley""",
    "adjective": """ancient bright careful distant eager famous gentle hidden hollow humble lively modern narrow patient
        quiet rapid salty silver simple small steady strange sturdy sudden tall tiny useful warm wide wooden""",
    "verb": """admires builds carries changes describes draws explains finds follows guards helps hides improves joins
        leaves measures moves needs notices opens paints protects reaches remembers repairs studies visits watches""",
    "place": """harbour hillside island meadow museum office park plaza port stable station street studio temple""",
    "when": """Today Yesterday Meanwhile Usually Sometimes Later Often Outside Inside Elsewhere Tonight Soon Indeed""",
    "topic": """astronomy baking chess cycling farming history hiking music painting poetry robotics sailing weaving""",
    "function": """average clean collect combine count filter group merge parse rank scale select sort split total""",
    "谁": """小明 老师 医生 画家 工程师 农民 学生 诗人 厨师 司机 邻居 记者""",
    "何时": """清晨 傍晚 雨后 春天 周末 多年以前 放学以后 晚饭之前 深夜 假期里""",
    "何地": """河边 图书馆 花园 车站 山顶 厨房 市场 实验室 博物馆 海港""",
    "做事": """读了一本旧书 画了一幅风景 修好了一台收音机 种下三棵树 写了一封长信 遇见一位老朋友 做了一道新菜""",
    "然后": """心里很高兴 学到了新的知识 决定明天再来 把经过告诉了家人 慢慢走回了家 觉得时间过得很快""",
}
_LISTS = {kind: words.split() for kind, words in _WORDS.items()}
_SENTENCES = [
    "The <adjective> <noun> <verb> a <adjective> <noun> near the <place>.",
    "<when>, <name> <verb> the <adjective> <noun> of the <place>.",
    "<name> <verb> each <adjective> <noun>, but the <noun> is still <adjective>.",
    "<when>, no <adjective> <noun> is more <adjective> than a <noun>.",
    "A <noun> with many <thing>s <verb> every <adjective> <noun>.",
    "Nobody in the <place> <verb> the <adjective> <noun> of <name>.",
]
_REQUESTS = [
    "Write some sentences about a <adjective> <noun> and <topic>.",
    "What should a beginner in <topic> know about the <adjective> <noun>?",
    "Explain to <name> why a <adjective> <noun> matters in <topic>.",
    "Which <noun> would <name> compare with a <adjective> <noun>?",
]


def serve(hub: LoopbackHub) -> None:
    """Add every data set that the shipped mixtures name."""
    for repo, contents in REPOS.items():
        hub.add(repo, **contents)


def _rows(make: Callable[[Random, int], dict], count: int, seed: str) -> Rows:
    """Distinct rows, the same in every run."""
    rng, rows = Random(f"{make.__name__} {seed}"), {}
    while len(rows) < count:
        row = make(rng, len(rows))
        rows.setdefault(json.dumps(row), row)
    return list(rows.values())


def _train_and_test(make: Callable[[Random, int], dict], names: tuple[str, str] = ("train", "test")) -> dict[str, Rows]:
    return {names[0]: _rows(make, 300, names[0]), names[1]: _rows(make, 60, names[1])}


# What texts are made of


def _fill(rng: Random, template: str) -> str:
    """The template with a random word for each `<kind>`."""
    return re.sub("<(\\w+)>", lambda found: rng.choice(_LISTS[found[1]]), template)


def _sentence(rng: Random) -> str:
    return _fill(rng, rng.choice(_SENTENCES))


def _text(rng: Random, least: int, most: int) -> str:
    """So many sentences, in paragraphs of up to five."""
    sentences = [_sentence(rng) for _ in range(rng.randint(least, most))]
    return "\n\n".join(" ".join(sentences[start : start + 5]) for start in range(0, len(sentences), 5))


def _request(rng: Random) -> str:
    summary = f"Summarize the following text.\n\n{_text(rng, 2, 5)}"
    return rng.choice([*(_fill(rng, template) for template in _REQUESTS), summary])


def _problem(rng: Random) -> tuple[str, str, int]:
    """A question of school mathematics, its working in GSM8K's notation, and the answer."""
    who, other = rng.sample(_LISTS["name"], 2)
    thing, place, noun = _fill(rng, "<thing> <place> <noun>").split()
    a, b, c, lost = rng.randint(200, 900), rng.randint(2, 90), rng.randint(2, 90), rng.randint(2, 200)
    kind = rng.randrange(3)
    if kind == 0:
        question = (
            f"At the {place} {who} fills {a} boxes with {b} {thing}s each. {other} brings {c} more for the {noun}."
        )
        steps, last = [(a, "*", b)], (a * b, "+", c)
    elif kind == 1:
        question = f"{who} has {a} {thing}s. A {noun} brings {c} more on each of {b} days, and {other} loses {lost}."
        steps, last = [(b, "*", c), (a, "+", b * c)], (a + b * c, "-", lost)
    else:
        question = (
            f"A {thing} costs {a} coins at the {place}, a {noun} {c} times as much. {who} pays {other} for {b} of both."
        )
        steps, last = [(a, "*", c), (a, "+", a * c)], (a + a * c, "*", b)
    results = {"*": lambda x, y: x * y, "+": lambda x, y: x + y, "-": lambda x, y: x - y}
    lines = []
    for x, sign, y in (*steps, last):
        answer = results[sign](x, y)
        lines.append(f"This makes {x} {sign} {y} = <<{x}{sign}{y}={answer}>>{answer}.")
    asked = f"{question} How many {'coins' if kind == 2 else thing + 's'} is that?"
    return asked, "\n".join(lines), answer


def _function(rng: Random) -> tuple[str, str]:
    """A Python function, and what it does."""
    verb, noun, adjective = _fill(rng, "<function> <noun> <adjective>").split()
    limit, step = rng.randint(2, 500), rng.randint(2, 9)
    name = f"{verb}_{adjective}_{noun}s"
    what = f"{verb} the {adjective} values of every {noun} above {limit}, {step} at a time"
    code = f'''def {name}({noun}s, limit={limit}):
    """{what.capitalize()}."""
    {verb}ed = []
    for index in range(0, len({noun}s), {step}):
        part = {noun}s[index : index + {step}]
        {verb}ed.extend(value for value in part if value > limit)
    if not {verb}ed:
        raise ValueError("no {noun} is {adjective}")
    return sorted({verb}ed)[:{rng.randint(3, 90)}]
'''
    return what, code


def _user(content: str) -> dict:
    return {"content": content, "role": "user"}


def _assistant(content: str) -> dict:
    return {"content": content, "role": "assistant"}


def _conversation(rng: Random) -> list[dict]:
    messages = [
        message for _ in range(rng.randint(1, 3)) for message in (_user(_request(rng)), _assistant(_text(rng, 1, 6)))
    ]
    system = [{"content": _fill(rng, "You are a <adjective> assistant who knows <topic>."), "role": "system"}]
    return (system if rng.random() < 0.2 else []) + messages


def _leaky(rows: Rows, column: str, texts: list[str], around: str = "{}") -> Rows:
    """The rows, some of them holding an evaluation text."""
    leaks = (around.format(text) for text in texts[:LEAKS])
    return [row | {column: leak} for row, leak in zip(rows, leaks, strict=False)] + rows[LEAKS:]


# One function for each row format


def _tinystories(rng: Random, number: int) -> dict:
    return {"text": _fill(rng, "Once upon a time there was a <adjective> <noun>. ") + _text(rng, 4, 14)}


def _fineweb_edu(rng: Random, number: int) -> dict:
    score = rng.uniform(2.5, 5)
    return {
        "text": _text(rng, 6, 25),
        "id": f"<urn:uuid:{number:08d}-0000>",
        "dump": "CC-MAIN-2024-10",
        "url": _fill(rng, f"https://example.org/<topic>/{number}"),
        "file_path": "s3://commoncrawl/crawl-data/CC-MAIN-2024-10/segments/0.warc.gz",
        "language": "en",
        "language_score": rng.uniform(0.7, 1),
        "token_count": rng.randint(80, 900),
        "score": score,
        "int_score": round(score),
    }


def _cosmopedia(rng: Random, number: int) -> dict:
    topic = _fill(rng, "<topic>")
    return {
        "prompt": f"Write a long and very detailed course unit for a textbook on {topic}.",
        "text_token_length": rng.randint(200, 900),
        "text": f" Unit {number}: {topic.capitalize()}\n\n{_text(rng, 10, 30)}",
        "seed_data": rng.choice(["auto_math_text", "khanacademy", "openstax", "stanford", "stories", "web_samples_v1"]),
        "format": rng.choice(["textbook_academic_tone", "blogpost", "wikihow", "story_children"]),
        "audience": rng.choice(["college_students", "general", "grade_school_students", "young_children"]),
    }


def _wikipedia(rng: Random, number: int) -> dict:
    title = _fill(rng, f"<adjective> <noun> {number}").capitalize()
    url = f"https://simple.wikipedia.org/wiki/{title.replace(' ', '%20')}"
    return {"id": str(number), "url": url, "title": title, "text": f"{title} is a topic. {_text(rng, 2, 12)}"}


def _finemath(rng: Random, number: int) -> dict:
    problems = [_problem(rng) for _ in range(rng.randint(2, 5))]
    worked = [f"**Example {i}.** {question}\n\n{working}" for i, (question, working, _) in enumerate(problems, start=1)]
    return {
        "url": f"https://example.org/maths/{number}",
        "fetch_time": 1_600_000_000 + number,
        "content_mime_type": "text/html",
        "warc_filename": "crawl-data/CC-MAIN-2021-10/segments/0.warc.gz",
        "warc_record_offset": 1000 * number,
        "warc_record_length": rng.randint(1000, 90_000),
        "text": f"# Lesson {number}\n\n{_text(rng, 2, 4)}\n\n" + "\n\n".join(worked),
        "token_count": rng.randint(100, 900),
        "char_count": rng.randint(400, 4000),
        "metadata": json.dumps({"found_math": True}),
        "score": rng.uniform(3.5, 5),
        "int_score": rng.choice([4, 4, 5]),
        "crawl": "CC-MAIN-2021-10",
        "snapshot_type": "longest",
        "language": "en",
        "language_score": rng.uniform(0.7, 1),
    }


def _codeparrot(rng: Random, number: int) -> dict:
    content = "import math\n\n\n" + "\n\n".join(_function(rng)[1] for _ in range(rng.randint(1, 4)))
    if number % 15 == 0:
        content = "".join(f'print "{_sentence(rng)}"\n' for _ in range(9))  # Python 2
    return {
        "repo_name": _fill(rng, "<name>/<noun>").lower(),
        "path": _fill(rng, f"src/<noun>_{number}.py"),
        "copies": str(rng.randint(1, 9)),
        "size": str(len(content)),
        "content": content,
        "license": rng.choice(["mit", "mit", "apache-2.0", "apache-2.0", "bsd-3-clause", "gpl-3.0", "lgpl-2.1"]),
        "hash": rng.getrandbits(62),
        "line_mean": rng.uniform(20, 60),
        "line_max": rng.randint(40, 100),
        "alpha_frac": rng.uniform(0.4, 0.8),
        "autogenerated": False,
    }


def _smol_smoltalk(rng: Random, number: int) -> dict:
    source = rng.choice(["everyday-conversations", "openhermes-50k", "smol-constraints", "smol-magpie-ultra-short"])
    return {"messages": _conversation(rng), "source": source}


def _dolly(rng: Random, number: int) -> dict:
    return {
        "instruction": _request(rng),
        "context": _text(rng, 2, 6) if rng.random() < 0.3 else "",
        "response": _text(rng, 1, 6),
        "category": rng.choice(["open_qa", "closed_qa", "summarization", "brainstorming", "creative_writing"]),
    }


def _no_robots(rng: Random, number: int) -> dict:
    messages = _conversation(rng)
    prompt = next(message["content"] for message in messages if message["role"] == "user")
    category = rng.choice(["Brainstorm", "Chat", "Coding", "Generation", "Open QA", "Rewrite", "Summarize"])
    return {"prompt": prompt, "prompt_id": f"{rng.getrandbits(256):064x}", "messages": messages, "category": category}


def _metamath(rng: Random, number: int) -> dict:
    kinds = ["Rephrased"] if number < LEAKS else ["AnsAug", "FOBAR", "Rephrased", "SV"]
    question, working, answer = _problem(rng)
    return {
        "type": f"{rng.choice(['GSM', 'MATH'])}_{rng.choice(kinds)}",
        "query": question,
        "original_question": question,
        "response": f"{working}\n#### {answer}\nThe answer is: {answer}",
    }


def _gsm8k(rng: Random, number: int) -> dict:
    question, working, answer = _problem(rng)
    return {"question": question, "answer": f"{working}\n#### {answer}"}


def _svamp(rng: Random, number: int) -> dict:
    who, thing, noun = _fill(rng, "<name> <thing> <noun>").split()
    a, b = rng.randint(50, 99), rng.randint(1, 49)
    body = f"{who} had {a} {thing}s and gave {b} of them to a {noun}"
    question = f"How many {thing}s does {who} have left?"
    return {
        "ID": f"chal-{number}",
        "Body": body,
        "Question": question,
        "Equation": f"( {a}.0 - {b}.0 )",
        "Answer": f"{a - b}.0",
        "Type": "Subtraction",
        "question_concat": f"{body}. {question}",
    }


def _magicoder(rng: Random, number: int) -> dict:
    what, code = _function(rng)
    lang = "python" if number % 4 else rng.choice(["cpp", "java", "typescript"])
    if lang != "python":
        code = f"int answer() {{\n    return {number};  // {what}\n}}\n"
    return {
        "lang": lang,
        "raw_index": number * 7,
        "index": number,
        "seed": code.splitlines()[0],
        "openai_fingerprint": "fp_eeff13170a",
        "problem": f"You are given a list of numbers. Write a function to {what}. {_sentence(rng)}",
        "solution": f"```{lang}\n{code}```\n\n{_sentence(rng)}",
    }


def _code_alpaca(rng: Random, number: int) -> dict:
    what, code = _function(rng)
    values = str([rng.randint(1, 900) for _ in range(5)]) if rng.random() < 0.4 else ""
    return {"output": code, "instruction": f"Write a Python function to {what}.", "input": values}


def _humaneval(rng: Random, number: int) -> dict:
    what, code = _function(rng)
    head, body = code.split('"""\n')
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f'{head}\n\n    Use it to {what}. {_sentence(rng)} {_sentence(rng)}\n    """\n',
        "canonical_solution": body,
        "test": "def check(candidate):\n    assert candidate([1000]) == [1000]\n",
        "entry_point": code.split("(")[0].removeprefix("def "),
    }


def _thoughts(rng: Random, number: int) -> dict:
    question, working, answer = _problem(rng)
    thought = f"<think>\nOkay, so {_text(rng, 3, 12)}\n\n{working}\n</think>\n\n"
    return {
        "messages": [_user(question), _assistant(f"{thought}{working} The answer is \\boxed{{{answer}}}.")],
        "num_tokens": rng.choice([400, 800, 1200, 1600, 6000]),
        "source": "open-r1/OpenR1-Math-220k",
    }


def _ultrafeedback(rng: Random, number: int) -> dict:
    prompt, better, worse = _request(rng), _text(rng, 2, 6), _text(rng, 1, 4)
    return {
        "prompt": prompt,
        "prompt_id": f"{rng.getrandbits(256):064x}",
        "chosen": [_user(prompt), _assistant(better)],
        "rejected": [_user(prompt), _assistant(worse)],
        "messages": [_user(prompt), _assistant(better)],
        "score_chosen": rng.choice([5.0, 7.0, 8.0, 8.5, 9.0]),
        "score_rejected": rng.choice([2.0, 4.0, 6.5]),
    }


def _hh_rlhf(rng: Random, number: int) -> dict:
    turns = [f"\n\nHuman: {_sentence(rng)}\n\nAssistant: {_sentence(rng)}" for _ in range(rng.randint(0, 2))]
    shared = "".join(turns) + f"\n\nHuman: {_request(rng)}\n\nAssistant: "
    return {"chosen": shared + _text(rng, 1, 4), "rejected": shared + _text(rng, 1, 3)}


def _pku_saferlhf(rng: Random, number: int) -> dict:
    safe = [rng.random() < 0.5, rng.random() < 0.5]
    return {
        "prompt": f"{_sentence(rng)} How would one get around it?",
        "response_0": _text(rng, 1, 5),
        "response_1": _text(rng, 1, 5),
        "prompt_source": rng.choice(["BeaverTails", "Alpaca3-70B"]),
        "response_0_source": "Alpaca-7B",
        "response_1_source": "Alpaca-7B",
        "is_response_0_safe": safe[0],
        "is_response_1_safe": safe[1],
        "response_0_harm_category": {"Privacy Violation": not safe[0], "Violence": False},
        "response_1_harm_category": {"Privacy Violation": not safe[1], "Violence": False},
        "response_0_severity_level": 0 if safe[0] else 2,
        "response_1_severity_level": 0 if safe[1] else 2,
        "better_response_id": rng.randrange(2),
        "safer_response_id": rng.randrange(2),
        "response_0_sha256": f"{rng.getrandbits(256):064x}",
        "response_1_sha256": f"{rng.getrandbits(256):064x}",
    }


def _ultrafeedback_prompt(rng: Random, number: int) -> dict:
    return {"prompt": [_user(_request(rng))]}


def _chinese(rng: Random, least: int = 3, most: int = 8) -> str:
    return "".join(_fill(rng, "<何时>，<谁>在<何地><做事>，<然后>。") for _ in range(rng.randint(least, most)))


def _minimind_pretrain(rng: Random, number: int) -> dict:
    return {"text": _chinese(rng) if number % 3 else _text(rng, 3, 8)}


def _turn(role: str, content: str, **more: str) -> dict:
    return {"role": role, "content": content, **more}


def _minimind_sft(rng: Random, number: int) -> dict:
    """Plain conversations first, then reasoning, then tools: the real file, too, has its parts one after another."""
    if number < 700:
        turns = [("user", f"{_chinese(rng, 1, 1)}后来呢？"), ("assistant", _chinese(rng, 1, 4))]
        return {"conversations": [_turn(*turn) for turn in turns * rng.randint(1, 2)]}
    if number < 850:
        answer = _turn("assistant", _chinese(rng, 1, 3), reasoning_content=_chinese(rng, 1, 2))
        return {"conversations": [_turn("user", f"请解释：{_chinese(rng, 1, 1)}"), answer]}
    a, b = rng.randint(100, 9999), rng.randint(100, 9999)
    call = json.dumps([{"name": "calculate_math", "arguments": {"expression": f"{a}*{b}"}}])
    return {
        "conversations": [
            _turn("system", "# Tools", tools=_TOOLS),
            _turn("user", f"算算{a}*{b}"),
            _turn("assistant", "", tool_calls=call),
            _turn("tool", json.dumps({"result": str(a * b)})),
            _turn("assistant", f"{a}*{b}等于{a * b}。"),
        ]
    }


def _minimind_dpo(rng: Random, number: int) -> dict:
    question = _user(f"{_chinese(rng, 1, 1)}为什么？" if number % 2 else _request(rng))
    return {side: [question, _assistant(_chinese(rng, 1, 4))] for side in ("chosen", "rejected")}


def _minimind_rlaif(rng: Random, number: int) -> dict:
    turns = [("user", _chinese(rng, 1, 1)), ("assistant", _chinese(rng, 1, 2))] * rng.randint(0, 1)
    return {
        "conversations": [
            _turn(*turn) for turn in (*turns, ("user", f"{_chinese(rng, 1, 1)}然后呢？"), ("assistant", ""))
        ]
    }


def _minimind_agent(rng: Random, number: int) -> dict:
    a, b = rng.randint(100, 9999), rng.randint(100, 9999)
    turns = [_turn("system", "", tools=_TOOLS), _turn("user", f"算算{a}*{b}"), _turn("assistant", "")]
    return {"conversations": turns, "gt": [str(a * b)]}


_TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "calculate_math",
                "description": "Calculate a mathematical expression",
                "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
            },
        }
    ]
)


# What is where


def _lines(rows: Rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _hh_files() -> Iterator[tuple[str, Rows]]:
    for folder in ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"):
        yield f"{folder}/train.jsonl.gz", _rows(_hh_rlhf, 300, folder)
        yield f"{folder}/test.jsonl.gz", _rows(_hh_rlhf, 60, f"{folder} test")


def _pku_files() -> Iterator[tuple[str, Rows | str]]:
    splits = [("train", 150), ("test", 40)]
    models = ["Alpaca-7B", "Alpaca2-7B", "Alpaca3-8B"]
    for model in models:
        for split, count in splits:
            yield f"data/{model}/{split}.jsonl", _rows(_pku_saferlhf, count, f"{model} {split}")
    files = [{"split": split, "path": [f"data/{model}/{split}.jsonl" for model in models]} for split, _ in splits]
    yield "README.md", f"---\nconfigs:\n- config_name: default\n  data_files: {json.dumps(files)}\n---\n"


_GSM8K = _train_and_test(_gsm8k)
_HUMANEVAL = _rows(_humaneval, 60, "test")
_GSM8K_QUESTIONS = [row["question"] for row in _GSM8K["test"]]
_METAMATH = _leaky(_rows(_metamath, 400, "train"), "query", _GSM8K_QUESTIONS)
_MAGICODER = _leaky(
    _rows(_magicoder, 300, "train")[1:], "problem", [row["prompt"] for row in _HUMANEVAL], "Complete:\n{}"
)
_FINEMATH = _leaky(
    _rows(_finemath, 300, "train"), "text", _GSM8K_QUESTIONS, "# Homework\n\n{}\n\n" + "Try it alone. " * 20
)

REPOS: dict[str, dict] = {
    "Anthropic/hh-rlhf": {"files": dict(_hh_files())},
    "ChilleD/SVAMP": {"configs": {"default": _train_and_test(_svamp)}},
    "HuggingFaceFW/fineweb-edu": {"configs": {"sample-10BT": {"train": _rows(_fineweb_edu, 300, "train")}}},
    "HuggingFaceH4/no_robots": {"configs": {"default": _train_and_test(_no_robots)}},
    "HuggingFaceH4/ultrafeedback_binarized": {
        "configs": {"default": _train_and_test(_ultrafeedback, ("train_prefs", "test_prefs"))}
    },
    "HuggingFaceTB/cosmopedia-100k": {"configs": {"default": {"train": _rows(_cosmopedia, 300, "train")}}},
    "HuggingFaceTB/finemath": {"configs": {"finemath-4plus": {"train": _FINEMATH}}},
    "HuggingFaceTB/smol-smoltalk": {"configs": {"default": _train_and_test(_smol_smoltalk)}},
    "PKU-Alignment/PKU-SafeRLHF": {"files": dict(_pku_files())},
    "codeparrot/codeparrot-clean-valid": {
        "files": {"file-000000000054.json.gz": _lines(_rows(_codeparrot, 300, "train"))}
    },
    "databricks/databricks-dolly-15k": {"files": {"databricks-dolly-15k.jsonl": _rows(_dolly, 300, "train")}},
    "ise-uiuc/Magicoder-OSS-Instruct-75K": {"files": {"data-oss_instruct-decontaminated.jsonl": _MAGICODER}},
    "jingyaogong/minimind_dataset": {
        "files": {
            "pretrain_t2t_mini.jsonl": _rows(_minimind_pretrain, 1000, "train"),
            "sft_t2t_mini.jsonl": _rows(_minimind_sft, 1000, "train"),
            "dpo.jsonl": _rows(_minimind_dpo, 300, "train"),
            "rlaif.jsonl": _rows(_minimind_rlaif, 300, "train"),
            "agent_rl_math.jsonl": _rows(_minimind_agent, 300, "train") + _rows(_minimind_agent, 9, "train"),
        },
        "tags": (MINIMIND_REVISION,),
    },
    "meta-math/MetaMathQA": {"files": {"MetaMathQA-395K.json": _METAMATH}},
    "open-r1/Mixture-of-Thoughts": {
        "configs": {name: {"train": _rows(_thoughts, 300, name)} for name in ("code", "math", "science")}
    },
    "openai/gsm8k": {"configs": {"main": _GSM8K, "socratic": _GSM8K}},
    "openai/openai_humaneval": {"configs": {"openai_humaneval": {"test": _HUMANEVAL}}},
    "roneneldan/TinyStories": {"configs": {"default": _train_and_test(_tinystories, ("train", "validation"))}},
    "sahil2801/CodeAlpaca-20k": {"files": {"code_alpaca_20k.json": _rows(_code_alpaca, 300, "train")}},
    "trl-lib/ultrafeedback-prompt": {"configs": {"default": _train_and_test(_ultrafeedback_prompt)}},
    "wikimedia/wikipedia": {"configs": {"20231101.simple": {"train": _rows(_wikipedia, 300, "train")}}},
}
"""The arguments of `LoopbackHub.add`, by the data set's name."""
