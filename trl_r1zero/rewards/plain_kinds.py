r"""Answers that are read as a whole, before they are read as formulas: words, times of the day,
numbers with a base, numbers with a unit of measurement.

Each comparison gives True or False where both texts are of its kind, and None where they are not.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

_STYLE = re.compile(r"\\(?:text|mathrm|mathbf)(?![a-zA-Z])\s*|[{}$]")
_MATHEMATICAL = re.compile(r"[\\^_=+*/<>|\[\]\d]")
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
# 0 to 99, in words without hyphens.
_NUMBER_WORDS = _SMALL.split() + [
    f"{tens} {ones}".strip() for tens in _TENS.split() for ones in ["", *_SMALL.split()[1:10]]
]
_SYNONYMS = {
    "dne": "does not exist", "undefined": "undefined", "not defined": "undefined",
    "no real solution": "no solution", "none": "no solution", "true": "yes", "false": "no",
    **{word: str(number) for number, word in enumerate(_NUMBER_WORDS)},
    "one hundred": "100", "a hundred": "100",
}  # fmt: skip


def same_text(given: str, truth: str) -> bool:
    """Whether two texts differ in blanks at most; of words also in capitals, articles, dots."""
    if given == truth or _tight(given) == _tight(truth) != "":
        return True
    words = words_of(given)
    return words != "" and words == words_of(truth)


def _tight(text: str) -> str:
    text = re.sub(r"[\s$]+", " ", text)
    # A blank counts between two words or numbers only.
    return re.sub(r"(?<![\w]) | (?![\w])", "", text).strip()


def words_of(text: str) -> str:
    """The words of a text without mathematics, in one spelling; "" for any other text."""
    text = _STYLE.sub("", text).strip().rstrip(".,;").casefold()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1].strip()
    choice = re.fullmatch(r"\(?\s*([a-z])\s*\)?[.:)]?", text)
    if choice is not None:
        return choice[1]
    if _MATHEMATICAL.search(text) or not re.search("[^\\W\\d_]{2}", text):
        return _SYNONYMS.get(text, text) if text.isdigit() else ""
    words = " ".join(re.sub(r"[\"'`,.;:!()-]", " ", text).split())
    words = re.sub(r"\A(?:an?|the) (?=\w)", "", words)
    words = re.sub(r"\bsolutions\b", "solution", words)
    return _SYNONYMS.get(words, words)


_PLAIN_NUMBER = re.compile(
    r"-?(?:(\d{1,15}(?:\.\d{1,15})?)"
    r"|(?:\\[dt]?frac\{(\d{1,9})\}\{|(\d{1,9})/(?=\d+\Z))([1-9]\d{0,8})\}?)"
)


def plainly_unequal(given: str, truth: str) -> bool:
    """Whether both are written as a number or a fraction, and far from equal: most wrong answers,
    which no grader takes for right."""
    a, b = _plain_value(given), _plain_value(truth)
    if a is None or b is None:
        return False
    return abs(a - b) > max(1e-6, 1e-3 * max(abs(a), abs(b)))


def _plain_value(text: str) -> float | None:
    match = _PLAIN_NUMBER.fullmatch(text)
    if match is None:
        return None
    whole, top, over, bottom = match.groups()
    value = float(whole) if whole else int(top or over) / int(bottom)
    return -value if text.startswith("-") else value


_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d)")
_BRACKETED = re.compile(r"(?:[(\[]|\\\{)[-\d,\s]+(?:[)\]]|\\\})")
_DECIMAL = re.compile(r"(?:\\\$)?-?\d+\.\d+")


def comma_readings(given: str, truth: str) -> list[tuple[str, str]]:
    """The texts as commas between their digits may be meant, the likeliest first.

    A comma in front of three digits is one of thousands, but in brackets it separates, unless the
    other text has brackets too; it also separates beside another list. In front of a zero it never
    does. A comma is a decimal one beside a decimal number.
    """
    if "," not in given + truth:
        return [(given, truth)]
    if bool(_BRACKETED.fullmatch(given)) != bool(_BRACKETED.fullmatch(truth)):
        given, truth = (
            _separated(text) if _BRACKETED.fullmatch(text) else text for text in (given, truth)
        )
    readings = [(given, truth)]
    numbers = _THOUSANDS.fullmatch(given) and _THOUSANDS.fullmatch(truth)
    if "," in given and "," in truth and not numbers:
        readings.append((_separated(given), _separated(truth)))
    if _DECIMAL.fullmatch(truth) and not _THOUSANDS.search(given):
        readings.append((re.sub(r"(?<=\d),(?=\d)", ".", given), truth))
    return list(dict.fromkeys(readings))


def _separated(text: str) -> str:
    return re.sub(r"(?<=\d),(?=[1-9]\d\d(?!\d))", ", ", text)


_TIME = re.compile(
    r"(?P<hour>\d{1,2}):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?\s*"
    r"(?:\\text\s*)?\{?\s*(?P<half>[ap]\.?\s?m\.?)?\s*\}?",
    re.IGNORECASE,
)


def same_time(given: str, truth: str) -> bool | None:
    """Times of the day; without "am" or "pm" on one side the other's counts."""
    times = [_TIME.fullmatch(text.strip()) for text in (given, truth)]
    if times[0] is None or times[1] is None:
        return None
    halves = {(time["half"] or "")[:1].lower() for time in times if time is not None}
    readings = []
    for time in times:
        hour, half = int(time["hour"]), (time["half"] or "")[:1].lower()  # type: ignore[index]
        if half or "" not in halves or hour > 12:
            hour = hour % 12 + 12 * (half == "p") if half else hour
        elif "p" in halves or "a" in halves:
            hour = hour % 12 + 12 * ("p" in halves)
        readings.append((hour, time["minute"], time["second"] or "00"))  # type: ignore[index]
    return readings[0] == readings[1]


_BASED = re.compile(
    r"\(?(?P<digits>(?:\d|[A-F](?=.*(?:16|sixteen)))[\dA-Fa-f]*(?:\.[\dA-Fa-f]+)?)\)?\s*_\s*\{?\s*(?:\\text\s*)?[{(]*\s*"
    r"(?P<base>\d{1,2}|[a-z]{3,7})\s*[)}]*\s*\}?"
)
_BASES = {"sixteen": "16"} | {name: str(number) for number, name in enumerate(_NUMBER_WORDS)}


def same_based_number(given: str, truth: str) -> bool | None:
    """`1101_2`: the same digits in the same base, which one side may leave out."""
    sides = [_based(text) for text in (given, truth)]
    bases = {base for _, base in sides if base is not None}
    if not bases:
        return None
    if any(not digits for digits, _ in sides):
        return None
    return len(bases) == 1 and sides[0][0] == sides[1][0]


def _based(text: str) -> tuple[str, str | None]:
    text = text.replace("\\,", "").replace("$", "").strip()
    match = _BASED.fullmatch(text)
    if match is None:
        words = re.fullmatch(r"(\d[\dA-Fa-f]*)\s+\(?(?:in\s+)?base[\s-]+(\w+)\)?", text)
        if words is not None:
            return words[1].upper(), _BASES.get(words[2], words[2])
        return text.upper() if re.fullmatch(r"\d[\dA-Fa-f]*", text) else "", None
    base = _BASES.get(match["base"], match["base"])
    if not base.isdigit() or not 2 <= int(base) <= 36:
        return "", None
    return match["digits"].upper(), base


# Unit -> what it measures, and how much of the first unit of that kind it is.
UNITS: dict[str, tuple[str, Fraction]] = {
    name: (kind, Fraction(factor))
    for kind, units in {
        "length": "m,meter,metre=1 mm,millimeter,millimetre=1/1000 cm,centimeter,centimetre=1/100 "
        "dm=1/10 km,kilometer,kilometre=1000 in,inch,inche=254/10000 ft,foot,feet=3048/10000 "
        "yd,yard=9144/10000 mi,mile=1609344/1000",
        "mass": "kg,kilogram=1 g,gram=1/1000 mg,milligram=1/1000000 lb,pound=45359237/100000000 "
        "oz,ounce=45359237/1600000000 ton,tonne=1000",
        "time": "s,sec,second=1 min,minute=60 h,hr,hour=3600 day=86400 week=604800",
        "money": "dollar,USD=1 cent=1/100", "euros": "euro,EUR=1", "pounds": "GBP=1",
        "volume": "L,l,liter,litre=1 ml,mL,milliliter,millilitre=1/1000",
        "speed": "m/s=1 km/s=1000 cm/s=1/100 ft/s=3048/10000 km/h=1000/3600 "
        "mph,mi/h=1609344/3600000",
        "frequency": "Hz=1 kHz=1000 MHz=1000000 GHz=1000000000",
        "energy": "eV=1 keV=1000 MeV=1000000 GeV=1000000000", "joules": "kJ=1", "watts": "kW=1",
        "pressure": "Pa=1 kPa=1000 MPa=1000000",
    }.items()
    for entry in units.split()
    for names, factor in [entry.split("=")]
    for name in names.split(",")
}  # fmt: skip
_UNIT = "|".join(sorted(UNITS, key=len, reverse=True))
_TWO_UNITS = re.compile(rf"(\d+)\s*({_UNIT})s?,?\s+(?:and\s+)?(\d+)\s*({_UNIT})s?")
_QUANTITY = re.compile(
    r"(?P<money>\\?\$)?\s*(?P<number>.*?[\d})])\s*(?:\\text\s*)?\{?[\s~]*"
    rf"(?P<unit>{_UNIT})?s?\.?\s*\}}?"
    r"(?:\s*\^\s*\{?(?P<power>[23])\}?)?\s*",
    re.DOTALL,
)


class Quantity(NamedTuple):
    """A number, what it measures (with the power of a length), its unit's size in base units."""

    number: str
    kind: str
    factor: Fraction


def quantity(text: str) -> Quantity | None:
    """The quantity that a text is; None for texts that do not end in a unit."""
    both = _TWO_UNITS.fullmatch(text) if len(text) < 200 else None
    if both is not None and UNITS[both[2]][0] == UNITS[both[4]][0]:
        sizes = f"{both[1]}*{UNITS[both[2]][1]}+{both[3]}*{UNITS[both[4]][1]}"
        return Quantity(sizes, f"{UNITS[both[2]][0]}^1", Fraction(1))
    match = _QUANTITY.fullmatch(text) if len(text) < 200 else None
    if match is None or not (match["unit"] or match["money"]):
        return None
    number = match["number"]
    if number.count("{") != number.count("}") or re.search(r"\}\s*\{[^{}]*\}\Z", text):
        return None  # the unit stands within the formula
    kind, factor = UNITS[match["unit"] or "dollar"]
    power = int(match["power"] or 1)
    return Quantity(number, f"{kind}^{power}", factor**power)


_UNIT_TEXT = re.compile(r"(?:\\text\s*\{[^{}]{1,40}\}(?:\s*\^\s*\{?-?\d+\}?)?\s*){1,6}\Z")
_EXPONENT = re.compile(r"\^\s*\{?(-?\d+)\}?")


def unit_powers_differ(given: str, truth: str) -> bool:
    """Whether both end in the same units of any kind, but not in the same powers of them."""
    units = [_UNIT_TEXT.search(text) if "\\text" in text else None for text in (given, truth)]
    if units[0] is None or units[1] is None:
        return False
    names = {re.sub(r"\W", "", _EXPONENT.sub("", unit[0])) for unit in units if unit}
    powers = {tuple(_EXPONENT.findall(unit[0])) for unit in units if unit}
    return len(names) == 1 and len(powers) > 1


KINDS: tuple[Callable[[str, str], bool | None], ...] = (same_time, same_based_number)
