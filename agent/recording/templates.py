"""Request templates in four languages, split into those for training and those for tests."""

from __future__ import annotations

from refdiff.agent.language.requests import ANOTHER_REFERENCE, SEVERAL_REFERENCES
from refdiff.agent.request import PLAIN_REQUEST

PLAIN = (
    PLAIN_REQUEST, "check part {part}", "Please inspect part {part}.",
    "is part #{part} ok?", "inspect #{part}", "does part {part} have any defect?", "look at part {part} for me",
    "Compare part {part} with its golden sample", "run an inspection on part #{part}", "part {part}: any scratches?",
    "QA check of part number {part}", "I think part {part} is fine, isn't it?", "part #{part} looks scratched, check",
    "Can you inspect part {part} and file a report?", "find defects on part #{part}", "inspect part {part}, it is urgent",
    "what is wrong with part {part}?", "please confirm that part {part} is good", "give me the defect report of part {part}",
    "part {part} against golden", "New part {part} from line 3. Please check it.", "Check #{part} carefully, please",
    "Prüfe Teil {part} gegen das nächste Gutmuster", "Teil #{part} prüfen", "Ist Teil {part} in Ordnung?",
    "Bitte Teil {part} auf Kratzer prüfen", "Vergleiche Teil {part} mit dem Referenzmuster",
    "inspecciona la pieza {part}", "¿Está bien la pieza #{part}?", "Revise la pieza {part} contra la muestra buena",
    "检查零件 {part}", "零件 #{part} 有缺陷吗?", "请将零件 {part} 与最近的合格样品比较",
)  # fmt: skip
PLAIN_TEST = (
    "could you take a look at part {part} and tell me if it passes", "it is fine, isn't it? part #{part}",
    "inspection of part {part}, thanks", "Is anything missing on part #{part}?", "verify part {part} vs. reference",
    "we suspect damage on part {part}", "part {part} please", "Kannst du Teil {part} kontrollieren?",
    "comprueba la pieza {part} por favor", "帮我看看零件 {part}",
)  # fmt: skip
SEVERAL = (
    SEVERAL_REFERENCES, "compare part #{part} with {n} references",
    "check part {part}, use {n} golden samples", "Prüfe Teil {part} mit {n} Referenzen",
)  # fmt: skip
SEVERAL_TEST = ("inspect #{part} using {n} goldens", "take {n} good samples for part {part}")
ANOTHER = (
    ANOTHER_REFERENCE, "check part #{part}; use the second nearest golden too",
    "compare part {part} with a different good sample as well", "Prüfe Teil {part} auch gegen ein anderes Gutmuster",
)  # fmt: skip
ANOTHER_TEST = ("part {part}: please double-check with another golden",)
NUMBERS = {1: ("1", "one"), 2: ("2", "two"), 3: ("3", "three"), 5: ("5", "five")}


def phrasings(test: bool) -> dict[str, tuple[str, ...]]:
    """kind -> templates."""
    if test:
        return {"plain": PLAIN_TEST, "several": SEVERAL_TEST, "another": ANOTHER_TEST}
    return {"plain": PLAIN, "several": SEVERAL, "another": ANOTHER}
