"""Which part and which photo a message is about: known, or asked for."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

import pytest

from refdiff.agent.language.intent import Intent, Said, products_in, the_part, the_product, understand
from refdiff.agent.language.parts import parts_in, words_before
from refdiff.model.errors import InputError

CAPTURED = {
    "4412",
    "4413",
    "44 12",
    "Gehäuse-links",
    "gearbox",
    "good",
    "零件甲",
    "左-12",
    "98",
    "102",
    "A-7",
    "４４１９",
}


def stored(ids: Collection[str]) -> set[str]:
    return CAPTURED & set(ids)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("inspect part #4412 against the nearest good sample", ["4412"]),
        ("is 4412 all right?", ["4412"]),
        # ids as they were captured, in any language
        ("inspect part 44 12", ["44 12"]),
        ('inspect part "44 12" please', ["44 12"]),
        ("prüfe Gehäuse-links", ["Gehäuse-links"]),
        ("czy Gehäuse-links jest w porządku?", ["Gehäuse-links"]),
        ("part gearbox", ["gearbox"]),
        ("#gearbox", ["gearbox"]),
        ("检查左-12号", ["左-12"]),
        ("部件４４１９", ["４４１９"]),
        ("проверь 4412", ["4412"]),
        ("inspect part 4412-B", ["4412-B"]),  # a new one, not 4412
        # lists and ranges
        ("inspect part #4412 and #4413", ["4412", "4413"]),
        ("inspect part #4412 and 4499", ["4412", "4499"]),
        ("part 4412 to 4415", ["4412", "4415"]),
        ("4412/4413", ["4412", "4413"]),
        ("4412/4499", ["4412", "4499"]),
        ("4412-4413", ["4412", "4413"]),
        ("4412–4415", ["4412", "4415"]),
        ("4412..4415", ["4412", "4415"]),
        ("4412, 4413 & 4414", ["4412", "4413", "4414"]),
        ("#4412 #4413", ["4412", "4413"]),
        ("part 98 to 102", ["98", "102"]),
        ("Teil 4412 bis 4415", ["4412", "4415"]),
        ("Teile 4412, 4413 und 4414", ["4412", "4413", "4414"]),
        ("inspecciona las piezas 4412 y 4413", ["4412", "4413"]),
        ("pièces 4412 jusqu'à 4415", ["4412", "4415"]),
        ("検査 4412 から 4415", ["4412", "4415"]),
        ("检查零件4412、4413", ["4412", "4413"]),
        ("零件4412到4415", ["4412", "4415"]),
        ("检查4412和4413", ["4412", "4413"]),
        ("parts A7 and A12", ["A7", "A12"]),
        ("inspect part 4412,4413", ["4412", "4413"]),
        ("Teile 4412,4413,4414", ["4412", "4413", "4414"]),
        ("检查零件4412，4413", ["4412", "4413"]),
        ("inspect part 1, 2", ["1", "2"]),
        ("inspect part 4412 and gearbox", ["4412", "gearbox"]),
        ("inspect part gearbox, good", ["gearbox", "good"]),
        ("inspect part 4412 'and 4413'", ["4412", "4413"]),
        ('is 4412 fine? "part 5"', ["4412", "5"]),
        ("inspect part 5555 12", ["5555", "12"]),
        # numbers that are no parts
        ("part #4412 against golden #3", ["4412"]),
        ("New part 4412 from line 3. Please check it.", ["4412"]),
        ("inspect part 4412, 30 mm wide", ["4412"]),
        ("part 4412 lot 17", ["4412"]),
        ("part 98, 3 scratches", ["98"]),
        ("part 4412,30 mm wide", ["4412"]),
        ("part 4412, 1.98 mm", ["4412"]),
        ("inspect part 4412 good and proper", ["4412"]),
        ("part 4412 at 10:30", ["4412"]),
        ("insp-20260101-000000-00000000 was part 4412", ["4412"]),
    ],
)
def test_message_names_all_its_parts_in_any_language(text: str, parts: list[str]) -> None:
    assert list(parts_in(text, stored).ids) == parts


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("inspect part 4412 and the next one", "and the next one"),
        ("inspect part #4412, and the following three parts", ", and the following three parts"),
        ("part 4412 and the next three please", "and the next three"),
        ("inspect 4412 and all the others", "and all the others"),
        ("part 4412 and the other ones against the nearest good sample", "and the other ones"),
        ("inspect part 4412 ff.", "ff."),
        ("part 4412 and up", "and up"),
        ("part 4412 onwards", "onwards"),
        ("Teil 4412 und die nächsten drei", "und die nächsten drei"),
        ("Teil 4412 und folgende", "und folgende"),
        ("prüfe Teil 4412 sowie das nächste Teil", "sowie das nächste Teil"),
        ("inspecciona la pieza 4412 y la siguiente", "y la siguiente"),
        ("pieza 4412 y las otras piezas", "y las otras piezas"),
        ("检查零件4412和下一个", "和下一个"),
        ("检查零件4412和其他零件", "和其他零件"),
        ("part 4412 and the other side", None),
        ("inspect part 4412 and try another reference", None),
        ("inspect part 4412 against the next best golden sample", None),
        ("inspect part 4412, next to the lamp", None),
        ("part 4412, the other side looked fine", None),
        ("part 4412 and tell me what follows", None),
        ("inspect part 4412 and 4413 and the next one", None),  # several ids are asked for anyway
    ],
)
def test_parts_without_ids_beside_a_named_one_are_asked_for(text: str, more: str | None) -> None:
    assert parts_in(text, stored).more == more
    if more is not None:
        assert more in str(understand([Said(text)], stored).ask)
        for given in (None, "4412"):
            with pytest.raises(InputError, match="names part 4412"):
                the_part(text, stored, given, photo=False)


@pytest.mark.parametrize("text", ["is it good?", "prüfe gearbox", "检查零件甲"])
def test_plain_word_that_is_also_a_part_is_asked_for(text: str) -> None:
    intent = understand([Said(text)], stored)
    assert intent.ask
    assert "Do you mean part" in intent.ask


TRANSCRIPT = "USER: inspect part #4412\nASSISTANT: **PASS**: part 4412 (board)."
PROMPTS = {
    "title with history": f"### Task:\nGenerate a title.\n### Chat History:\n<chat_history>\n{TRANSCRIPT}\n</chat_history>",
    "tags": f"### Task:\nGenerate 1-3 broad tags.\n<chat_history>\n{TRANSCRIPT}\n</chat_history>",
    "autocomplete": "### Task:\nYou are an autocompletion system.\n<type>General</type>\n<text>inspect part #4412 ag</text>",
    "emoji": 'Reflect the speaker in an emoji.\nMessage: """inspect part #4412"""',
    "labels": "Provide a concise title for the conversation.\n\nConversation:\nUser: inspect part #4412\nAI: PASS",
    "labels of several lines": "Give a title.\n\nUser: hello,\ninspect part #4412\nAI: PASS",
    "lower-case labels": "user: inspect part #4412\nassistant: PASS\n\nPlease summarize the above conversation into a title",
    "Chinese": "user: 检查零件4412\nassistant: 合格\n\n请总结上述对话为10个字以内的标题",
    "JSON": '{"id":"x","role":"user","parts":[{"type":"text","text":"inspect part #4412"}]}',
    "JSON of messages": 'Name this topic.\n[{"role":"user","content":"inspect part #4412"}]',
    "quotation marks": 'User message: "inspect part #4412"',
    "other quotation marks": "Fasse „inspect part #4412 please“ in drei Wörtern zusammen",
    "fence": "Based on the chat history, give this conversation a name.\n```\ninspect part #4412\n```\nName it.",
    "introduced": "Create a short title (3-7 words) for this conversation:\ninspect part #4412\nPASS",
    "one line": "Summarize in four words: inspect part #4412",
    "query": 'Available tools: []\nQuery: History:\nUSER: """inspect part #4412"""\nQuery: inspect part #4412',
    "lines of their own": "Write a title for the following chat\n\ninspect part #4412 please\n\nPASS: part 4412 is good",
    "instruction afterwards": "inspect part #4412\n\nGiven the above, suggest a short title",
    "list": "Write a title for this chat\n1. inspect part #4412\n2. PASS",
    "rulers": "Create a title\n---\ninspect part #4412\n---",
    "heading": "# Task\nTitle\n# Input\ninspect part #4412",
    "roles in brackets": "[user]\ninspect part #4412\n[/user]\nSuggest 3 follow-ups",
    "bold labels": "**User:** inspect part #4412\n\nWrite a title",
    "ChatML": "Summarise\n<|im_start|>user\ninspect part #4412<|im_end|>",
    "dash": "Title this chat - inspect part #4412",
    "arrow": "Translate to German -> inspect part #4412",
    "code": "Write a title for `inspect part #4412`",
    "braces": "Give a title for {inspect part #4412}",
    "long": "inspect part #4412" + " hello" * 400,
    "own words": "Write a title for a conversation about part #4412",
    "own words with the verb": "Write a short title for the request to inspect part #4412",
    "the verb inside another word": "Write an inspection title for the chat in which users inspect part #4412",
    "task on a line with a longer id": "inspect part 4412\nSuggest three short questions about order AB4412C for me",
    "own words in German": "Schreibe einen Titel für ein Gespräch über die Prüfung von Teil 4412",
    "follow-ups in own words": "Suggest three questions that somebody who is inspecting part 4412 may ask",
    "Markdown quote": "Suggest three follow-up questions.\n\n> inspect part #4412",
}


@pytest.mark.parametrize(
    ("text", "ids", "before"),
    [
        ("a12 is a title for part 12", ["12"], "a12 is a title for"),
        ("alloys and users of A", ["A", "s"], "alloys and users of"),
        ("see 4412_b, then 4412", ["4412"], "see 4412_b, then"),
        ("check 4412-4415", ["4412", "4415"], "check"),
        ("inspect part４４１２ now", ["4412"], "inspect"),
        ("first line\nsee part12", ["12"], "see"),
        ("no such part", ["12"], "no such"),
    ],
)
def test_words_before_a_part_end_where_its_id_stands_as_a_word(text: str, ids: list[str], before: str) -> None:
    assert words_before(text, ids).strip() == before


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("known", [True, False])
def test_prompt_that_quotes_a_request_asks_for_no_inspection(prompt: str, known: bool) -> None:
    intent = understand([Said(prompt, prompt=True)], *([stored] if known else []))
    assert intent.part_id is None
    assert intent.ask
    assert "Nothing was inspected" in intent.ask


@pytest.mark.parametrize(
    "text",
    [
        "Hi,\nplease inspect part #4412.\nThanks",
        "part: 4412",
        "Product: board\nPart: 4412\nthanks",
        "Teilenummer: 4412",
        "QA check: part 4412",
        "part 4412: any scratches?",
        "part 4412 - any scratches?",
        "Good morning,\n\ninspect part 4412 against the nearest good sample and tell me what you see.\n\nThanks\nAda",
        "Part: 4412\nProduct: board",
        'inspect part "4412"',
        "part 4412",
        "#4412 please",
        "New part 4412 from line 3. Please check it.",
        "Hi, could you please inspect part 4412?",
        "Kannst du bitte Teil 4412 prüfen?",
        "Verify part 4412",
        "麻烦检查零件4412",
        "パーツ4412を検査してください",
        "4412번 부품을 검사해 주시면 정말 감사하겠습니다",
        "what about part 4412?",
    ],
)
def test_request_in_own_words_is_no_quotation(text: str) -> None:
    assert understand([Said(text, prompt=True)]).part_id == "4412"


@dataclass(frozen=True)
class _About:
    inspection_id: str = "insp-20260101-000000-00000000"
    part_id: str = "4412"
    product: str | None = "board"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("inspect part #4413", "4413"),
        ("and part 4413?", "4413"),
        ("now #4413 please", "4413"),
        ("再检查零件 4413", "4413"),
        ("check part #4412 again", "4412"),
        ("look at part 4412 again", "4412"),
        ("revisa la pieza #4412 otra vez", "4412"),
        ("inspect it again", "4412"),
        ("please inspect it again", "4412"),
        ("Prüfe es bitte noch einmal", "4412"),
        ("重新检查一下", "4412"),
        # people speaking of parts ask for no inspection
        ("part 4411 had the same scratch, right?", None),
        ("is it the same scratch as on part 4411?", None),
        ("how does it compare to #4411?", None),
        ("was part 4412 inspected yesterday?", None),
        ("how long is finding 1?", None),
    ],
)
def test_further_message_names_a_new_part_or_asks_about_the_last(text: str, part: str | None) -> None:
    about = _About()
    assert understand([Said(text)], about=about) == Intent(part, about=None if part else about.inspection_id)


PHOTO = Said("", files=1)


@pytest.mark.parametrize(
    ("newest_first", "about", "part", "photo"),
    [
        # a part, then its photo, or the other way round
        ([PHOTO, Said("inspect part #5")], False, "5", 0),
        ([Said("it is part 5"), PHOTO], False, "5", 1),
        ([Said("5500"), Said("is this ok?", files=1)], False, "5500", 1),
        ([Said("a board"), Said("inspect part #5", files=1)], False, "5", 1),
        ([Said("board"), PHOTO, Said("inspect part #5")], False, "5", 1),
        # after a report
        ([PHOTO], True, None, None),
        ([Said("and this one?", files=1)], True, None, None),
        ([Said("inspect this one", files=1)], True, None, None),
        ([Said("inspect it again", files=1)], True, None, None),
        ([Said("part #4412 again", files=1)], True, "4412", 0),
        ([Said("and #4413?", files=1)], True, "4413", 0),
        ([Said("it's part 4413"), Said("and this one?", files=1)], True, "4413", 1),
        ([Said("part #4412"), Said("and this one?", files=1)], True, "4412", 1),
        ([PHOTO, Said("inspect part #5")], True, "5", 0),
        ([PHOTO, Said("4411 had the same scratch, right?")], True, None, None),
        ([Said("inspect the next one")], True, None, None),
        ([Said("#4413, #4414?", files=1)], True, None, None),
        ([Said("prüfe die nächste")], True, None, None),
        # which photo?
        ([Said("inspect part #5, #6", files=1)], False, None, None),
        ([Said("inspect part #5", files=2)], False, None, None),
        ([PHOTO, Said("inspect part #5", files=1)], False, None, None),
        ([Said("part #6"), Said("inspect part #5", files=1)], False, None, None),
        ([Said("part #6"), Said("inspect part #5", files=2)], False, None, None),
    ],
)
def test_photo_and_part_of_a_conversation_are_known_or_asked_for(
    newest_first: list[Said], about: bool, part: str | None, photo: int | None
) -> None:
    intent = understand(newest_first, stored, products=["board"], about=_About() if about else None)
    assert (intent.part_id, intent.photo) == (part, photo)
    assert (intent.ask is None) is (part is not None)


def test_question_is_no_answer_to_which_part_a_photo_shows() -> None:
    about = _About()
    intent = understand([Said("how does it compare to #4411?"), PHOTO], about=about)
    assert intent == Intent(about=about.inspection_id)


@pytest.mark.parametrize(
    ("text", "files", "part"),
    [
        ("4413 is on my desk", 0, None),
        ("#4413", 0, "4413"),
        ("inspect 4413", 0, "4413"),
        ("4413", 1, "4413"),
        ("lunch?", 0, None),
    ],
)
def test_people_who_talk_to_each_other_ask_for_no_inspection(text: str, files: int, part: str | None) -> None:
    intent = understand([Said(text, files, addressed=False), Said("inspect part #5")])
    assert (intent.part_id, intent.ask) == (part, None)


@pytest.mark.parametrize(
    ("text", "open_"), [("4412 and 4413", True), ("is it good?", True), ('a title for "inspect part #4412"', False)]
)
def test_part_that_is_known_otherwise_settles_a_doubt_but_makes_no_quotation_a_request(text: str, open_: bool) -> None:
    intent = understand([Said(text, prompt=True)], stored)
    assert intent.ask
    assert intent.lacks_part is open_


def test_message_that_adds_nothing_repeats_no_earlier_request() -> None:
    title = Said("Please give this conversation a title of five words", prompt=True)
    assert understand([title, Said("inspect part #5", prompt=True)]) == Intent()


@pytest.mark.parametrize(
    ("text", "given", "found"),
    [
        ("inspect part #4412", None, "4412"),
        ("inspect part #4412", "#4412", "#4412"),
        ("as 4411 was", "4412", "4412"),
        ("hello", None, None),
        ("hello", "4412", "4412"),
        ("inspect part #4413", "4412", "4413.*4412"),
        ("4412 to 4415", None, "several parts"),
    ],
)
def test_part_beside_a_text_agrees_with_it_or_is_refused(text: str, given: str | None, found: str | None) -> None:
    if found is None or found.lstrip("#") == "4412":
        assert the_part(text, stored, given, photo=False) == found
    else:
        with pytest.raises(InputError, match=found):
            the_part(text, stored, given, photo=False)


@pytest.mark.parametrize(
    "text",
    ["part" + " " * 300_000, "part " * 60_000, "#" * 300_000, "a.-" * 100_000, "<a>" * 9000, "4412, " * 9000, "a:" * 9000,
     '"' * 9000, "'a " * 9000],
)  # fmt: skip
def test_hostile_text_takes_less_than_a_second_of_cpu_time(text: str) -> None:
    started = time.thread_time()
    understand([Said(text, prompt=True)], stored)
    assert time.thread_time() - started < 1


@pytest.mark.parametrize(
    "text",
    [
        "part 4412, photo bad.png",
        "part 4412 https://cam.example/a.JPG?x=1",
        "part 4412 ![photo](data:image/png;base64,AA)",
        "part 4412.tif",
        "零件4412，照片bad.bmp",
    ],
)
def test_photo_that_a_request_only_names_is_asked_for(text: str) -> None:
    with pytest.raises(InputError, match="names a photo"):
        the_part(text, stored, photo=False)
    assert the_part(f"part 4412 as {text[9:]}", stored, "4412", photo=True) == "4412"


@pytest.mark.parametrize(
    "text", ["part 4412 see www.example.com", "part 4412 rev. B.c", "part 4412, e.g. 3.5 mm", "part cam.png"]
)
def test_what_is_no_photo_is_not_taken_for_one(text: str) -> None:
    assert the_part(text, lambda ids: {"4412", "cam.png"} & set(ids), photo=False) in ("4412", "cam.png")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a board", ["board"]),
        ("a BOARD-2!", ["board-2"]),
        ("boards", []),
        ("board or gear", ["board", "gear"]),
        ("x", []),
        ("零件 gear。", ["gear"]),
    ],
)
def test_product_is_recognised_as_a_whole_word(text: str, named: list[str]) -> None:
    assert products_in(text, ["board", "board-2", "gear"]) == named


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("product bords", "did you mean board"),
        ("Produkt: gaer", "did you mean gear"),
        ("part 5, product bottle", "no product 'bottle'; there are board, gear"),
        ("part 5 (Produkt bottle)", "no product 'bottle'"),
        ("检查零件5，产品bottle", "no product 'bottle'"),
        ("product: bottle", "no product 'bottle'"),
        ("part 5 of the board, not of the gear", "several products"),
        ("part 5, product Board", None),
        ("the product looks fine", None),
        ("part 5, the product failed", None),
    ],
)
def test_product_that_is_unknown_or_one_of_several_is_asked_for(text: str, said: str | None) -> None:
    if said is None:
        assert the_product([text], ["board", "gear"]) in (None, "board")
    else:
        with pytest.raises(InputError, match=said):
            the_product([text], ["board", "gear"])
