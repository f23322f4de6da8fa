"""Texts and prompts on which an exported model is compared with its source. They are the same in every process."""

import random
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

_SENTENCES = (
    "The quick brown fox jumps over the lazy dog; it's 12:45, and we'll see what they've got.",
    "MiniMind 是一个从零开始训练的小型语言模型,参数量只有 26M。",
    "天空为什么是蓝色的?因为大气中的分子散射短波长的光。",
    "繁體中文:這個句子用來檢查分詞結果是否一致。",
    "日本語の文章では、漢字とひらがなとカタカナが混ざります。",
    "한국어 문장은 띄어쓰기를 사용합니다.",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Où est l'école ? L'été, ça commence déjà, n'est-ce pas ?",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia; ¿y qué? ¡Nada!",
    "صباح الخير، كيف حالك اليوم؟ الأرقام ١٢٣ مختلفة.",
    "שלום עולם, זה משפט בעברית עם ניקוד: שָׁלוֹם.",
    "नमस्ते दुनिया, यह हिन्दी में एक वाक्य है।",
    "สวัสดีครับ ประโยคภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "Tiếng Việt có nhiều dấu thanh: ngã, hỏi, nặng, sắc, huyền.",
    "Ο Έλληνας φίλος μου λέει καλημέρα κάθε πρωί.",
    "cafe\u0301 and café look alike; so do Å, Å and A\u030a.",
)
_EMOJI = ("😀", "👩‍👩‍👧‍👦", "🇩🇪🇨🇳", "👍🏽", "❤️", "🏳️‍🌈", "1️⃣", "🤖🤖🤖", "☃", "♥︎")
_CODE = (
    "def add(a: int, b: int) -> int:\n    return a + b\n",
    'for (int i = 0; i < n; ++i) {\n\tprintf("%d\\n", x[i]);\n}',
    '{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}',
    "SELECT * FROM users WHERE id IN (1, 22, 333) -- comment\r\n",
    "<div class='x'>&amp;nbsp;</div><!-- y -->",
    "$\\frac{1}{2}\\sum_{i=1}^{n} x_i^2 \\le 3.14$",
    "https://example.org/a/b?c=d&e=%20f#g",
    "git commit -m 'fix: it''s done' && echo $?",
    "0x1F600 1e-5 3,141,592.65 ½ ² ٣ Ⅷ",
)
_SPACES = (
    *(
        " ",
        "  ",
        "     ",
        "\n",
        "\n\n",
        "\n\n\n",
        "\t",
        "\t\t",
        " \n",
        "\n ",
        " \n \n",
        "\r\n",
        "\r\n\r\n",
        "\r",
        "\x0b",
    ),
    *("\x0c", "\x1c", "\x85", "\u00a0", "\u2003", "\u2028", "\u200b", "\u3000", "\ufeff", "", ""),
)
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "’s", "''s")
_PLANES = ((0x20, 0x7F), (0xA0, 0x2FF), (0x300, 0x1FFF), (0x2000, 0x2FFF), (0x3000, 0xD7FF), (0x1F000, 0x1FAFF))

_QUESTIONS = (
    ("What is {}?", ("the capital of France", "a neural network", "photosynthesis", "the speed of light", "a prime")),
    ("Explain {} in one sentence.", ("gravity", "a GPU", "the French Revolution", "recursion", "an atom")),
    ("Write a short poem about {}.", ("the sea", "winter", "a cat", "the moon", "rain")),
    ("{}是什么?", ("人工智能", "光合作用", "长江", "区块链", "万有引力")),
    ("请用一句话介绍{}。", ("北京", "李白", "大语言模型", "春节", "熊猫")),
    ("为什么{}?", ("天空是蓝色的", "人需要睡觉", "海水是咸的", "叶子会变黄", "冰会浮在水上")),
    ("How many {} are there?", ("planets", "days in a leap year", "bits in a byte", "continents", "chess pieces")),
    ("Translate into English: {}", ("你好,世界", "今天天气很好", "Guten Morgen", "merci beaucoup", "我喜欢读书")),
    ("{} = ?", ("12 + 30", "7 * 8", "100 - 1", "144 / 12", "2 ** 10")),
    ("Fix this code: {}", ("pritn('x')", "for i in range(3) print(i)", "x = [1, 2", "def f(: pass", "retrun 1")),
)
_SYSTEMS = (None, "You are a helpful assistant.", "你是一个有用的助手。", "Answer briefly.")


def certificate_texts(tokenizer: PreTrainedTokenizerBase, count: int) -> Iterator[str]:
    """Texts in many languages, with emoji, code, spaces of all kinds, and the tokenizer's control tokens spelled out.

    Args:
        tokenizer: its added tokens are spelled out, whole and cut off.
        count: number of texts; a smaller number gives the first of them.
    """
    generator = random.Random(0)
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    for _ in range(count):
        yield "".join(_fragment(generator, added) for _ in range(generator.randint(1, 12)))


def _fragment(generator: random.Random, added: list[str]) -> str:
    kind = generator.randrange(10)
    if kind < 3:  # some words of a sentence
        words = generator.choice(_SENTENCES).split(" ")
        start = generator.randrange(len(words))
        return " ".join(words[start : start + generator.randint(1, 8)])
    if kind < 5:
        return generator.choice(_SPACES)
    if kind == 5:
        return generator.choice(_EMOJI)
    if kind == 6:
        code = generator.choice(_CODE)
        return code[generator.randrange(len(code) // 2) :]
    if kind == 7 and added:
        token = generator.choice(added)
        return generator.choice((token, token, f" {token} ", token[:-1], token[1:], token.upper(), token[0] + " "))
    if kind == 8:
        return generator.choice(
            (generator.choice(_CONTRACTIONS), str(generator.randrange(10 ** generator.randint(1, 9))))
        )
    first, last = generator.choice(_PLANES)
    return "".join(chr(generator.randint(first, last)) for _ in range(generator.randint(1, 4)))


def certificate_conversations(count: int) -> list[list[dict[str, str]]]:
    """Questions in two languages, of one turn or several, with and without a system message."""
    generator = random.Random(0)
    return [_conversation(generator) for _ in range(count)]


def _conversation(generator: random.Random) -> list[dict[str, str]]:
    system = generator.choice(_SYSTEMS)
    messages = [] if system is None else [{"role": "system", "content": system}]
    if generator.random() < 0.25:
        messages.append({"role": "user", "content": _question(generator)})
        messages.append({"role": "assistant", "content": generator.choice(_SENTENCES)})
    return [*messages, {"role": "user", "content": _question(generator)}]


def _question(generator: random.Random) -> str:
    form, topics = generator.choice(_QUESTIONS)
    return form.format(generator.choice(topics))
