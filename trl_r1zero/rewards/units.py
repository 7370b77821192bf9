"""The unit words that the string comparison deletes, in the reference's order (data only).

The list was typed by hand by the authors of the reference; it holds duplicates, typing errors and
three entries in broken encoding. All of that decides verdicts, so it stays as it is; a checksum in
the tests guards it.
"""

__all__ = ["BASE_UNITS", "UNITS"]

_LIST = (
    "east|degree|mph|kmph|ft|m sqaure| m east|sq m|deg|mile|q .|monkey|prime|ratio|"
    "profit of rs|rd|o|gm|p . m|lb|tile|per|dm|lt|gain|ab|way|west|a .|b .|c .|d .|e .|f .|"
    "g .|h .|t|a|h|no change|men|soldier|pie|bc|excess|st|inches|noon|percent|by|gal|kmh|c|"
    "acre|rise|a . m|th|π r 2|sq|mark|l|toy|coin|sq . m|gallon|° f|profit|minw|yr|women|feet|"
    "am|pm|hr|cu cm|square|v â € ™|are|rupee|rounds|cubic|cc|mtr|s|ohm|number|kmph|day|hour|"
    "minute|min|second|man|woman|sec|cube|mt|sq inch|mp|∏ cm ³|hectare|more|sec|unit|cu . m|"
    "cm 2|rs .|rs|kg|g|month|km|m|cm|mm|apple|liter|loss|yard|pure|year|increase|decrease|d|"
    "less|Surface|litre|pi sq m|s .|metre|meter|inch"
)
BASE_UNITS: tuple[str, ...] = tuple(_LIST.split("|"))

# Every word, then every plural.
UNITS: tuple[str, ...] = BASE_UNITS + tuple(unit + "s" for unit in BASE_UNITS)
