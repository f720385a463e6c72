"""The words and commands that the grammar knows. What is in no table is refused."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTIONS = {
    **{name: name for name in ("sin", "cos", "tan", "cot", "sec", "csc")},
    **{name: name for name in ("sinh", "cosh", "tanh", "ln", "log", "lg", "exp")},
    **{name: name for name in ("arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc")},
    **{"asin": "arcsin", "acos": "arccos", "atan": "arctan", "abs": "abs"},
    **{name: name for name in ("gcd", "lcm", "min", "max", "floor", "ceil")},
}
"""Names of known functions -> how the tree calls them."""

MULTIPLE_ARGUMENTS = frozenset(("gcd", "lcm", "min", "max"))
INVERSE = {name: f"arc{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc")}

CONSTANTS = {"pi": "pi", "infty": "infinity", "infinity": "infinity", "inf": "infinity"}
PLAIN_CONSTANTS = {"pi": "pi", "infinity": "infinity", "inf": "infinity", "oo": "infinity"}

GREEK = _words(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi "
    "rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi "
    "Psi Omega ell"
)

OPERATORS = {
    **{"cdot": "*", "times": "*", "ast": "*", "div": "/", "pm": "pm", "mp": "mp"},
    **{"le": "<=", "leq": "<=", "leqslant": "<=", "lt": "<"},
    **{"ge": ">=", "geq": ">=", "geqslant": ">=", "gt": ">", "ne": "!=", "neq": "!="},
    **{"approx": "~", "in": "in", "cup": "union", "cap": "intersection", "setminus": "minus"},
    **{"{": "{set", "}": "set}", "lbrace": "{set", "rbrace": "set}", "%": "%", "colon": ":"},
    **{"langle": "<(", "rangle": ")>", "vert": "|", "lvert": "|", "rvert": "|"},
    **{"lfloor": "floor(", "rfloor": ")floor", "lceil": "ceil(", "rceil": ")ceil"},
    **{"\\": "row", "degree": "degree", "circ": "degree", "mid": ":"},
    **{"lbrack": "[", "rbrack": "]"},
}
"""Commands that are one symbol."""

LAYOUT = _words(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle "
    "textstyle scriptstyle limits nolimits quad qquad thinspace boldsymbol bm mathstrut $"
) | frozenset(",;:!> ()[]")
"""Commands that change nothing but the look. ``\\$`` is here too: it is no symbol but a unit."""

TEXT = _words(
    "text textrm textbf textit textnormal textsf mbox hbox mathrm mathbf mathit mathsf mathnormal "
    "operatorname"
)
DECORATIONS = _words("overline bar vec hat overrightarrow tilde widehat angle triangle")
FRACTIONS = _words("frac dfrac tfrac cfrac")
BINOMIALS = _words("binom dbinom tbinom")
MATRICES = _words("pmatrix bmatrix matrix smallmatrix array Bmatrix")
NUMBER_SETS = frozenset("RZQNC")
UNWORKED = _words("sum prod int iint oint lim limsup liminf")
"""What an answer has to have worked out."""

CONNECTIVES = frozenset(("and", "or"))
PERCENT = frozenset(("percent", "per cent", "percentage", "pct"))
DEGREE = frozenset(("degree", "degrees", "deg"))

UNITS = {
    **{name: "centimeter" for name in ("cm", "centimeter", "centimetre")},
    **{name: "meter" for name in ("meter", "metre")},
    **{name: "kilometer" for name in ("km", "kilometer", "kilometre")},
    **{name: "millimeter" for name in ("mm", "millimeter", "millimetre")},
    **{name: "foot" for name in ("ft", "foot", "feet")},
    **{name: "inch" for name in ("in", "inch", "inches")},
    **{name: "mile" for name in ("mi", "mile")},
    **{name: "kilogram" for name in ("kg", "kilogram")},
    **{name: "milligram" for name in ("mg", "milligram")},
    **{name: "pound" for name in ("lb", "lbs", "pound")},
    **{name: "ounce" for name in ("oz", "ounce")},
    **{name: "milliliter" for name in ("ml", "mL", "milliliter", "millilitre")},
    **{name: "liter" for name in ("liter", "litre")},
    **{name: "hour" for name in ("hr", "hrs", "hour")},
    **{name: "minute" for name in ("min", "mins", "minute")},
    **{name: "second" for name in ("sec", "secs", "second")},
    **{name: "square" for name in ("sq", "square")},
    **{name: "dollar" for name in ("dollar", "usd", "USD", "buck")},
    **{name: "cent" for name in ("cent", "penny", "pennie")},
    **{"mph": "mph", "unit": "unit", "cube": "cubic", "cubic": "cubic"},
}
"""Abbreviations and singulars -> the unit's name; other words are their own name, less an s."""

CURRENCIES = {"$": "dollar", "\u20ac": "euro", "\u00a3": "pound", "\u00a5": "yen"}
"""Signs that stand beside an amount -> the unit; each is its own singular."""

NO_AMOUNT_OF = _words(
    "dollar euro pound yen cent dime nickel pence yuan won rupee ruble peso franc krona percent "
    "degree"
)
"""What cannot stand behind an amount with the sign of another currency."""

SHORT_WORDS = frozenset(
    ("yes", "no", "all", "odd", "dne", "not", "none", "am", "pm", "kph", "usd", "per", "day")
)
"""Words of two or three letters that are no product of variables."""

MEANINGFUL_WORDS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve dozen hundred hundreds "
    "thousand thousands million millions billion billions trillion half halves third thirds "
    "quarter quarters fifth tenth tenths hundredth hundredths thousandth thousandths double "
    "triple twice times squared cubed root minus plus negative positive not no none never "
    "without except other than between to about approximately roughly around least most more less "
    "greater smaller over under above below up down either neither nor if else unless maybe "
    "mod modulo base is are be equals equal divided multiplied added power percent each "
    "wrong incorrect false true any all every some infinity pi pair pairs couple couples score "
    "scores gross grosses k b t bn mn mil mio fourth fourths fifths sixth sixths seventh sevenths "
    "eighth eighths ninth ninths tens millionth millionths billionth billionths trillions lakh "
    "lakhs crore crores kilo mega giga milli micro permil permille mille ppm bps percentage "
    "dozens myriad myriads hundredweight hundredweights billionth billionths lac lacs e "
    "factorial reciprocal reciprocals inverse opposite imaginary remainder teen ty"
)
"""Words that change what a number means, so they are no unit."""
