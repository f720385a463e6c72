"""Small problems in the manner of HumanEval (functions) and of contests (programs), as data.

Each has a right solution and one that is wrong in the way in which people are. Slow, crashing and
trivial ones are made from those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SLOW_S = 0.05
"""Time allowed to the slow variants; honest ones take a few milliseconds."""


@dataclass(frozen=True)
class Problem:
    """``cases`` are (arguments, value) of ``function``, or (input, output) of a program."""

    name: str
    cases: list[tuple[Any, Any]]
    right: str
    wrong: str
    function: str = ""

    def task(self, **more: Any) -> dict[str, Any]:
        """Fields of a ``code`` task."""
        if self.function:
            tests = [{"args": args, "expected": value} for args, value in self.cases]
            return {"function": self.function, "tests": tests, **more}
        return {"tests": [{"input": given, "output": out} for given, out in self.cases], **more}

    @property
    def slow(self) -> str:
        """The right solution, after counting to five million."""
        waste = "for _ in range(5_000_000): pass"
        if not self.function:
            return f"{waste}\n{self.right}"
        name = self.function
        again = f"def {name}(*args):\n    {waste}\n    return right(*args)"
        return f"{self.right}\nright = {name}\n{again}"

    @property
    def crashing(self) -> str:
        """A solution that divides by nothing."""
        return f"def {self.function}(*args): return 1 // 0" if self.function else "1 // 0"

    @property
    def trivial(self) -> str:
        """The solution that does nothing."""
        return f"def {self.function}(*args): return None" if self.function else "pass"


def _f(name: str, cases: list[tuple[Any, Any]], right: str, wrong: str) -> Problem:
    return Problem(name, cases, f"def {name}{right}", f"def {name}{wrong}", name)


_FIZZ_BUZZ = "1 2 Fizz 4 Buzz Fizz 7 8 Fizz Buzz 11 Fizz 13 14 FizzBuzz".replace(" ", "\n")

FORTY_TWO_FIRST = _f(
    "f",
    [([[3, 1, 2]], [42, 1, 2, 3]), ([[]], [42]), ([[5, 5]], [42, 5, 5])],
    "(x): return [42] + sorted(x)",
    "(x): return sorted(x + [42])",
)
"""``sort the list but put 42 first``."""

PROBLEMS = [
    FORTY_TWO_FIRST,
    _f(
        "is_palindrome",
        [(["level"], True), (["ab"], False), ([""], True), (["Aa"], False)],
        "(s): return s == s[::-1]",
        "(s): return s.lower() == s.lower()[::-1]",
    ),
    _f(
        "gcd",
        [([12, 18], 6), ([7, 5], 1), ([0, 4], 4)],
        "(a, b):\n    while b: a, b = b, a % b\n    return a",
        "(a, b): return min(a, b)",
    ),
    _f(
        "mean",
        [([[1, 2]], 1.5), ([[3]], 3.0), ([[0.5, 0.25]], 0.375)],
        "(x): return sum(x) / len(x)",
        "(x): return sum(x) // len(x)",
    ),
    _f(
        "words",
        [(["a b a"], {"a": 2, "b": 1}), ([""], {})],
        "(s):\n    from collections import Counter\n    return dict(Counter(s.split()))",
        "(s): return {w: 1 for w in s.split()}",
    ),
    _f(
        "two_sum",
        [([[2, 7, 11], 9], [0, 1]), ([[3, 3], 6], [0, 1]), ([[1, 2], 9], None)],
        "(x, t):\n    seen = {}\n    for i, v in enumerate(x):\n"
        "        if t - v in seen: return (seen[t - v], i)\n        seen[v] = i",
        "(x, t): return [x.index(v) for v in x if t - v in x] or None",
    ),
    _f(
        "primes",
        [([10], [2, 3, 5, 7]), ([2], []), ([3], [2])],
        "(n): return [k for k in range(2, n) if all(k % d for d in range(2, k))]",
        "(n): return [k for k in range(2, n + 1) if all(k % d for d in range(2, k))]",
    ),
    _f(
        "fibonacci",
        [([0], 0), ([10], 55), ([200], 280571172992510140037611932413038677189525)],
        "(n):\n    a, b = 0, 1\n    for _ in range(n): a, b = b, a + b\n    return a",
        "(n): return round(((1 + 5 ** 0.5) / 2) ** n / 5 ** 0.5)",
    ),
    _f(
        "flatten",
        [([[1, [2, [3]], []]], [1, 2, 3]), ([[]], [])],
        "(x): return [z for y in x for z in (flatten(y) if isinstance(y, list) else [y])]",
        "(x): return [z for y in x for z in (y if isinstance(y, list) else [y])]",
    ),
    _f(
        "balanced",
        [(["([])"], True), (["(]"], False), (["("], False), ([""], True), (["([)]"], False)],
        "(s):\n    open_, pairs = [], {')': '(', ']': '['}\n    for c in s:\n"
        "        if c in '([': open_.append(c)\n"
        "        elif not open_ or open_.pop() != pairs[c]: return False\n    return not open_",
        "(s): return s.count('(') == s.count(')') and s.count('[') == s.count(']')",
    ),
    _f(
        "transpose",
        [([[[1, 2], [3, 4]]], [[1, 3], [2, 4]]), ([[[1, 2]]], [[1], [2]])],
        "(m): return list(zip(*m))",
        "(m): return [[row[i] for row in m] for i in range(len(m))]",
    ),
    _f(
        "run_length",
        [(["aab"], [["a", 2], ["b", 1]]), (["aba"], [["a", 1], ["b", 1], ["a", 1]])],
        "(s):\n    from itertools import groupby\n"
        "    return [(k, len(list(g))) for k, g in groupby(s)]",
        "(s): return [(c, s.count(c)) for c in sorted(set(s))]",
    ),
    _f(
        "roman",
        [([4], "IV"), ([1994], "MCMXCIV"), ([3], "III")],
        "(n):\n    out = ''\n    values = (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1)\n"
        "    for v, r in zip(values,\n            'M CM D CD C XC L XL X IX V IV I'.split()):\n"
        "        out += r * (n // v)\n        n %= v\n    return out",
        "(n): return 'M' * (n // 1000) + 'I' * (n % 1000)",
    ),
    _f(
        "edit_distance",
        [(["kitten", "sitting"], 3), (["", "abc"], 3), (["abc", "xab"], 2)],
        "(a, b):\n    row = list(range(len(b) + 1))\n    for i, x in enumerate(a, 1):\n"
        "        last, row[0] = row[0], i\n        for j, y in enumerate(b, 1):\n"
        "            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))\n"
        "    return row[-1]",
        "(a, b): return abs(len(a) - len(b)) + sum(x != y for x, y in zip(a, b))",
    ),
    _f(
        "caesar",
        [(["abz", 1], "bca"), (["Hi!", 2], "Jk!")],
        "(s, k): return ''.join(chr((ord(c) - b + k) % 26 + b) if c.isalpha() else c\n"
        "        for c in s for b in [65 if c.isupper() else 97])",
        "(s, k): return ''.join(chr(ord(c) + k) for c in s)",
    ),
    _f(
        "median",
        [([[3, 1, 2]], 2), ([[4, 1, 2, 3]], 2.5)],
        "(x):\n    import statistics\n    return statistics.median(x)",
        "(x): return sorted(x)[len(x) // 2]",
    ),
    _f(
        "merge",
        [
            ([[[1, 3], [2, 4], [6, 7]]], [[1, 4], [6, 7]]),
            ([[]], []),
            ([[[1, 9], [2, 3]]], [[1, 9]]),
        ],
        "(x):\n    out = []\n    for a, b in sorted(x):\n"
        "        if out and a <= out[-1][1]: out[-1][1] = max(out[-1][1], b)\n"
        "        else: out.append([a, b])\n    return out",
        "(x):\n    out = []\n    for a, b in sorted(x):\n"
        "        if out and a <= out[-1][1]: out[-1][1] = b\n"
        "        else: out.append([a, b])\n    return out",
    ),
    Problem(
        "sum of a line",
        [("1 2 3\n", "6\n"), ("-1 1\n", "0\n"), ("10\n", "10\n")],
        "print(sum(map(int, input().split())))",
        "print(sum(int(c) for c in input() if c.isdigit()))",
    ),
    Problem(
        "reverse the lines",
        [("a\nb\nc\n", "c\nb\na\n"), ("one\n", "one\n")],
        "import sys\nprint(*reversed(sys.stdin.read().splitlines()), sep='\\n')",
        "import sys\nprint(sys.stdin.read()[::-1])",
    ),
    Problem(
        "fizz buzz",
        [("5\n", "1\n2\nFizz\n4\nBuzz\n"), ("15\n", _FIZZ_BUZZ)],
        "for i in range(1, int(input()) + 1):\n"
        "    print('Fizz' * (i % 3 == 0) + 'Buzz' * (i % 5 == 0) or i)",
        "for i in range(1, int(input()) + 1):\n"
        "    print('Fizz' if i % 3 == 0 else 'Buzz' if i % 5 == 0 else i)",
    ),
    Problem(
        "largest gap",
        [("4\n1 9 3 4\n", "5\n"), ("2\n5 5\n", "0\n")],
        "input()\nx = sorted(map(int, input().split()))\n"
        "print(max(b - a for a, b in zip(x, x[1:])))",
        "input()\nx = list(map(int, input().split()))\nprint(max(x) - min(x))",
    ),
    Problem(
        "knapsack",
        [("2 10\n5 10\n6 12\n", "12\n"), ("3 5\n2 3\n3 4\n1 2\n", "7\n")],
        "n, c = map(int, input().split())\nbest = [0] * (c + 1)\nfor _ in range(n):\n"
        "    w, v = map(int, input().split())\n    for k in range(c, w - 1, -1):\n"
        "        best[k] = max(best[k], best[k - w] + v)\nprint(best[c])",
        "n, c = map(int, input().split())\nbest = [0] * (c + 1)\nfor _ in range(n):\n"
        "    w, v = map(int, input().split())\n    for k in range(w, c + 1):\n"
        "        best[k] = max(best[k], best[k - w] + v)\nprint(best[c] + 1)",
    ),
    Problem(
        "shortest path",
        [("3 3\n1 2 1\n2 3 1\n1 3 5\n", "2\n"), ("2 0\n", "-1\n")],
        "import heapq\nn, m = map(int, input().split())\nto = {}\nfor _ in range(m):\n"
        "    a, b, w = map(int, input().split())\n    to.setdefault(a, []).append((b, w))\n"
        "    to.setdefault(b, []).append((a, w))\nqueue, seen = [(0, 1)], {}\nwhile queue:\n"
        "    d, v = heapq.heappop(queue)\n    if v in seen: continue\n    seen[v] = d\n"
        "    for u, w in to.get(v, []): heapq.heappush(queue, (d + w, u))\nprint(seen.get(n, -1))",
        "n, m = map(int, input().split())\nbest = -1\nfor _ in range(m):\n"
        "    a, b, w = map(int, input().split())\n    if (a, b) == (1, n): best = w\nprint(best)",
    ),
    Problem(
        "empty input",
        [("", "nothing\n"), ("x", "something\n")],
        "import sys\nprint('something' if sys.stdin.read() else 'nothing')",
        "print('nothing')",
    ),
    Problem(
        "text that is not ASCII",
        [("\u00e9\u4f60\n", "2\n"), ("abc\n", "3\n")],
        "print(len(input()))",
        "print(len(input().encode()))",
    ),
]

CPP = Problem(
    "sum of a line in C++",
    [("1 2 3\n", "6\n"), ("-1 1\n", "0\n")],
    "#include <iostream>\nint main(){long s=0,x;while(std::cin>>x)s+=x;std::cout<<s<<std::endl;}",
    "#include <iostream>\nint main(){long x;std::cin>>x;std::cout<<x<<std::endl;}",
)
