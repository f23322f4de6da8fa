"""`math_accuracy` finds the answers of rows and models: right answers get 1, wrong ones 0."""

import threading

import pytest

from minimind_trl.rewards import load_rewards

pytest.importorskip("math_verify")

# the row's answer; right answers of a model; wrong ones
READ = [
    (r"2\sqrt{3}", [r"\boxed{2\sqrt{3}}", r"2\sqrt{3}", "2√3", r"so $\sqrt{12}$", "It is 2 sqrt(3)."], ["2", "3"]),
    ("10^{5}", [r"\boxed{100000}", "10^5", "The answer is 100,000.", "so it is 10^{5}."], [r"\boxed{10}", "10", "5"]),
    ("10", ["10", r"\boxed{10}"], ["so it is 10^{5}.", "10^{5}", r"\boxed{10^{5}}"]),
    (r"9\pi", [r"\boxed{9\pi}", "9π", "9pi"], [r"\boxed{9}"]),
    ("6 - 5i", [r"\boxed{6-5i}", "-5i + 6", "The answer is 6 - 5i."], [r"\boxed{6}", r"\boxed{6+5i}", "-5"]),
    ("7,8,9", [r"\boxed{7,8,9}", "7, 8, and 9", "9, 8, 7", "$7$, $8$ and $9$"], ["9", "7,8", "789"]),
    ("100,200,300", ["100, 200, 300", "100,200,300"], ["300"]),
    ("3 1 2", ["3 1 2", "3, 1, 2"], ["1 2 3", "6"]),
    ("(5,0)", ["(5, 0)"], ["(7,2)", "(0,5)"]),
    ("1,234", ["1234", "1,234", r"1\,234", "1 234"], ["234", "1"]),
    ("(0,5)", [r"\boxed{(0,5)}", "(0, 5)", r"\left( 0, 5 \right)"], [r"\boxed{[0,5]}", "5", r"\boxed{(5,0)}"]),
    (r"(3, \frac{\pi}{2})", [r"\boxed{(3, \frac{\pi}{2})}", "(3, π/2)"], [r"\boxed{(3, \frac{\pi}{3})}"]),
    ("[0,1)", ["[0,1)", "$[0, 1)$"], ["(0,1)", "[0,1]"]),
    (r"(-\infty,1)\cup(2,\infty)", [r"(-\infty, 1) \cup (2, \infty)"], [r"(-\infty, 1) \cup (3, \infty)"]),
    (r"\frac{5\pi}{6}", [r"\boxed{\frac{5\pi}{6}}", "5π/6", r"\frac{5}{6}\pi"], [r"\boxed{\frac{5}{6}}", "5"]),
    ("x^3+2x", [r"\boxed{x^3+2x}", "x(x^2+2)", "2x + x³"], [r"\boxed{x^3}", "3"]),
    ("2x + 3t", ["3t+2x"], ["2x+3"]),
    ("2xy", ["2yx"], ["2"]),
    ("5 cm", ["5", r"\boxed{5\text{ cm}}", "5cm", "The answer is 5 centimetres."], ["6 cm"]),
    (r"13\text{ cm}^2", ["13", "13 cm^2"], ["169"]),
    ("10 km/h", ["10", r"10 \text{ km/h}", "10 kilometres per hour"], ["11 km/h"]),
    ("9.8 m/s^2", ["9.8"], ["9"]),
    ("100 元", ["100", "一共100元。"], ["10"]),
    ("30°", ["30", r"30^\circ"], ["3"]),
    ("25%", ["25%", r"\boxed{25\%}", "0.25", "25 percent", "1/4"], ["26%", "2.5"]),
    ("$5,000", ["5000", r"\$5,000", "5,000 dollars"], ["5"]),
    ("0.5", [r"so it is \boxed{\frac{1}{2}}", "1/2", ".5"], ["5", "2"]),
    ("3.5", ["3 1/2", "7/2"], ["3", "2"]),
    ("1e5", ["100000"], ["5", "1"]),
    ("-3", ["-3", "−3"], ["3"]),
    ("x=3", ["3", "x = 3"], ["x = 4"]),
    ("A", ["A", "(A)", "The answer is A.", r"\boxed{A}"], ["The answer is (B).", "B"]),
    (r"\text{Evelyn}", [r"\boxed{\text{Evelyn}}"], [r"\boxed{\text{Ann}}"]),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", [r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}"], ["2"]),
    # with working around it
    ("6 * 7 = 42\n#### 42", ["the answer is 42", "#### 42\nDone."], ["the answer is 41", "6 * 8"]),
    ("5+1\n#### 42\nThat is all, in 2 steps.", ["42"], ["2"]),
    ("#### -5\n\n解析: 3-8", ["-5"], ["8"]),
    ("The answer is: 42", ["6*7 = 42", "The answer is 42, which is 6 * 7 + 0 * 3.", "**Answer:** 42"], ["6 * 7 + 1"]),
    ("答案是：42", ["最终答案为42。", "答案：42", "42"], ["答案是 43"]),
    ("解：6乘7等于42。\n答案：42", ["42"], ["7"]),
    (r"We get \boxed{7}. The answer is as above.", ["7", r"The answer is 8. No: \boxed{7}"], [r"7? No: \boxed{8}"]),
    (r"\boxed{7}. The answer is 8?", ["7"], ["8"]),
    (r"So \boxed{\frac{\sqrt{3}}{2}}.", [r"\frac{\sqrt3}{2}"], [r"\frac{3}{2}"]),
    ("#### Step 1\nWe add.\nThe answer is 7", ["7"], ["1"]),
    ("10", ["He paid $5 and then $10.", "$10$"], ["$5$"]),
    ("7", ["Answer: We have 12 eggs. 5 are eaten, so 7 remain.", "Answer: 7\n\nFor 12 - 5 is so."], ["Answer: 12"]),
    (r"x=3 \text{ or } x=4", ["x=3, x=4", "3, 4"], ["4"]),
    ("5", [r"\boxed{\text{The answer is } 5}", "答案：５！"], [r"\boxed{\text{not } 6}"]),
    ("42", ["I got a 42", "She has <<6*7=42>>42 apples.", "42 (forty-two)"], ["", "no idea", "x42y"]),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "right", "wrong"), READ, ids=[gold[:20] for gold, *_ in READ])
def test_right_answers_get_1_and_wrong_ones_0(gold, right, wrong):
    [reward], _ = load_rewards(["math_accuracy"])
    said = [*right, *wrong]
    scores = reward(prompts=["?"] * len(said), completions=said, answer=[gold] * len(said))
    assert dict(zip(said, scores, strict=True)) == dict.fromkeys(right, 1.0) | dict.fromkeys(wrong, 0.0)


@pytest.mark.parametrize("gold", ["no idea", "", "Evelyn", "yes", "?", None])
def test_an_answer_without_mathematics_is_detected_beforehand_and_gives_no_reward(gold):
    [reward], _ = load_rewards(["math_accuracy"])
    assert reward(prompts=["?"], completions=["42"], answer=[gold]) == [None]
    rows = [{"answer": gold}, {"answer": "42"}, {"answer": 7}]
    assert reward.unscored(rows) == rows[:1]


@pytest.mark.parametrize(
    ("prompt", "said", "expected"),
    [
        ("<think>\n", "6 * 7 = 42", 0),
        ("<think>\n", "6 * 7 = 42\n</think>\n\n42", 1),
        ("<think>\n", "6 * 7 = 42\n</think>\n\n41", 0),
        ("<think>\n\n</think>\n\n", "42", 1),
        ("?", "<think>\n42", 0),
    ],
)
def test_unfinished_reasoning_scores_0(prompt, said, expected):
    [reward], _ = load_rewards(["math_accuracy"])
    assert reward(prompts=[prompt], completions=[said], answer=["42"]) == [expected]


def test_scoring_works_outside_the_main_thread():
    """math_verify's time limit is a signal, which only the main thread can receive."""
    [reward], _ = load_rewards(["math_accuracy"])
    scores = []

    def score():
        scores.extend(reward(prompts=["?"], completions=[r"\boxed{x^2-1}"], answer=["(x-1)(x+1)"]))

    thread = threading.Thread(target=score)
    thread.start()
    thread.join()
    assert scores == [1.0]
