"""The named tools: a calculator, unit conversion, and four look-ups with fixed, made-up answers.

They are the six tools of upstream's agent stage (trainer/train_agent.py), which answer every question the same at any
time and place. What their tables do not hold is an error that says what they do hold. The docstrings are part of every
prompt, so they are short.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from .calculator import as_text, evaluate

_NOW = datetime(2025, 3, 7, 6, 30, tzinfo=UTC)
_WEATHER = {
    **{"北京": ("28°C", "晴"), "上海": ("15°C", "多云"), "广州": ("32°C", "闷热"), "深圳": ("30°C", "晴")},
    **{"杭州": ("22°C", "阴"), "成都": ("18°C", "小雨"), "武汉": ("25°C", "多云"), "南京": ("20°C", "晴")},
    **{"西安": ("16°C", "大风"), "重庆": ("26°C", "阴"), "Tokyo": ("12°C", "晴"), "New York": ("8°C", "多云")},
    **{"London": ("5°C", "小雨"), "Paris": ("10°C", "阴"), "Sydney": ("25°C", "晴朗")},
}
_IN_CNY = {"CNY": 1.0, "USD": 7.21, "EUR": 7.85, "GBP": 9.12, "JPY": 0.048, "AUD": 4.72}
_RATES = {("USD", "EUR"): 0.92, ("USD", "GBP"): 0.79, ("CNY", "JPY"): 20.83}  # that upstream rounds otherwise
_TRANSLATIONS = {
    **{("你好世界", "english"): "Hello World", ("Good morning", "chinese"): "早上好"},
    **{("今天天气真好", "english"): "The weather is nice today", ("I love programming", "chinese"): "我喜欢编程"},
    **{("机器学习很有趣", "english"): "Machine learning is interesting", ("Happy birthday", "chinese"): "生日快乐"},
}
_UNITS = {  # kind of quantity: sizes in its first unit
    "length": {"m": 1, "km": 1000, "cm": 0.01, "mm": 0.001, "mile": 1609.344, "foot": 0.3048, "inch": 0.0254},
    "mass": {"kg": 1, "g": 0.001, "pound": 0.45359237, "ounce": 0.028349523125},
    "time": {"s": 1, "minute": 60, "hour": 3600, "day": 86400},
    "volume": {"l": 1, "ml": 0.001},
}
_SPELLINGS = {
    **{"meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km", "centimeter": "cm", "millimeter": "mm"},
    **{"feet": "foot", "ft": "foot", "inches": "inch", "kilogram": "kg", "gram": "g", "lb": "pound", "oz": "ounce"},
    **{"second": "s", "min": "minute", "h": "hour", "liter": "l", "litre": "l", "milliliter": "ml"},
    **{"c": "celsius", "f": "fahrenheit", "°c": "celsius", "°f": "fahrenheit"},
}


def calculator(expression: str):
    """Compute.

    Args:
        expression: such as 2*(3+4)
    """
    return as_text(evaluate(expression))


def unit_convert(value: float, from_unit: str, to_unit: str):
    """Convert units.

    Args:
        value: number
        from_unit: such as km
        to_unit: such as mile
    """
    number, source, target = float(value), _unit(from_unit), _unit(to_unit)
    if {source, target} <= {"celsius", "fahrenheit"}:
        converted = number if source == target else number * 1.8 + 32 if source == "celsius" else (number - 32) / 1.8
        return as_text(round(converted, 4))
    for sizes in _UNITS.values():
        if source in sizes and target in sizes:
            return as_text(round(number * sizes[source] / sizes[target], 4))
    known = [unit for sizes in _UNITS.values() for unit in sizes]
    raise ValueError(f"cannot convert {from_unit:.20} to {to_unit:.20}; known: {', '.join(known)}, celsius, fahrenheit")


def weather(location: str):
    """Get the weather.

    Args:
        location: city
    """
    temperature, condition = _looked_up(_WEATHER, location, "weather for")
    return {"city": location, "temperature": temperature, "humidity": "65%", "condition": condition}


def current_time(timezone: str = "Asia/Shanghai"):
    """Get the time.

    Args:
        timezone: such as Asia/Shanghai
    """
    try:
        there = _NOW.astimezone(ZoneInfo(timezone))
    except (OSError, ValueError, KeyError, TypeError):  # KeyError: zoneinfo's error for an unknown zone
        raise ValueError(f"no time zone {timezone!r:.40}") from None
    return {"datetime": f"{there:%Y-%m-%d %H:%M:%S}", "timezone": timezone}


def exchange_rate(from_currency: str, to_currency: str):
    """Get an exchange rate.

    Args:
        from_currency: such as USD
        to_currency: such as CNY
    """
    pair = str(from_currency).upper(), str(to_currency).upper()
    rate = _RATES.get(pair)
    if rate is None:
        source, target = (_looked_up(_IN_CNY, currency, "rate of") for currency in pair)
        rate = float(f"{source / target:.4g}")
    return {"from": pair[0], "to": pair[1], "rate": rate}


def translate(text: str, target_language: str):
    """Translate a phrase.

    Args:
        text: the phrase
        target_language: english or chinese
    """
    languages = {language for _, language in _TRANSLATIONS}
    language = str(target_language).lower()
    if language not in languages:
        raise ValueError(f"no language {language!r:.30}; known: {', '.join(sorted(languages))}")
    phrases = {phrase: translated for (phrase, into), translated in _TRANSLATIONS.items() if into == language}
    return {"translated_text": _looked_up(phrases, text, "translation of")}


def _unit(name: str) -> str:
    lower = str(name).strip().lower()
    known = {*_SPELLINGS, "celsius", "fahrenheit", *(unit for sizes in _UNITS.values() for unit in sizes)}
    singular = lower if lower in known else lower.removesuffix("s")
    return _SPELLINGS.get(singular, singular)


def _looked_up(table: dict, key: str, what: str):
    if key not in table:
        raise ValueError(f"no {what} {key!r:.30}; known: {', '.join(table)}")
    return table[key]


def calculate_math(expression: str):
    """计算数学表达式

    Args:
        expression: 表达式
    """
    return {"result": calculator(expression)}


def unit_converter(value: float, from_unit: str, to_unit: str):
    """单位换算

    Args:
        value: 数值
        from_unit: 原单位
        to_unit: 目标单位
    """
    return {"result": float(unit_convert(value, from_unit, to_unit))}


def get_current_weather(location: str):
    """获取天气

    Args:
        location: 城市
    """
    return weather(location)


def get_current_time(timezone: str = "Asia/Shanghai"):
    """获取时间

    Args:
        timezone: 时区
    """
    return current_time(timezone)


def get_exchange_rate(from_currency: str, to_currency: str):
    """查询汇率

    Args:
        from_currency: 原货币
        to_currency: 目标货币
    """
    return exchange_rate(from_currency, to_currency)


def translate_text(text: str, target_language: str):
    """翻译文本

    Args:
        text: 文本
        target_language: english 或 chinese
    """
    return translate(text, target_language)


OWN: tuple[Callable, ...] = (calculator, unit_convert, weather, current_time, exchange_rate, translate)
UPSTREAM: tuple[Callable, ...] = (
    *(calculate_math, unit_converter, get_current_weather, get_current_time, get_exchange_rate, translate_text),
)
