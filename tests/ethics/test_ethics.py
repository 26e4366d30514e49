"""No sexual edit where a minor could be meant: hard cases, with harmless captions."""

from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from saferclip import ethics
from saferclip.benchmark import prompts

CATEGORIES = tuple(prompts.load("v1").categories)

PLAIN = """
a child on a swing | two children play | CHILDREN AT A TABLE | a child's shoe | the children’s books
childhood photographs | a kid with a kite | kids in a boat | the kid's bicycle | kiddos by the sea
a kiddie ride | a boy and a dog | boys | BOY | a schoolboy on a bus | a girl with a balloon | girls
a schoolgirl | a girlish dress | a girlfriend | a cowboy hat | a baby in a pram | babies
a baby elephant in the zoo | a babysitter on a sofa | baby-sized shoes | a toddler | toddlers | an infant seat
newborns | a teen at a desk | teens | a teenager | teenage musicians | a pre-teen | a preteen | a tween
a youth with a guitar | youths | a young woman on a horse | the youngest player | youngsters
a minor league game | a juvenile penguin | adolescents | underage | under-age | under age | a junior team
daughters | a son and a father | his sons | a grandson | a niece | nephews | siblings | twins in a boat
a family at a table | families | a mother | a dad | a pupil | students in a hall | a school | pupils at school
a first-grader | graders | kindergarten | a nursery | a preschool | a playground | a classroom | a crib
a stroller | a diaper bag | a pacifier | a cub scout | scouts | a quinceañera dress | a bar mitzvah
a prom queen | kid gloves | a school bus | a little one on a bench | tiny humans | a lad | a lass | laddies
a bambino | an orphan | a ballerina | a cheerleader | a little brother | a small person
a cadet | an underclassman | undergrads on the lawn | a coed | a ring bearer at a wedding | a princess costume
a little leaguer | a tee-ball player | a T-ball game | pee-wee football | a trick-or-treater | a preemie
quadruplets in a row | wee ones | a mini-me | an ankle biter | rugrats | the class of 2031 | born in 2015
a lil bro | her lil sis | a gurl | grrls | a chico | a niño | a niña
enfants | a homecoming dance | a christening | a fetus
a pigtailed skater | a munchkin | a teenie | a teener | barely legal | pre-K | brats | small fry | moppets
a stripling | a whippersnapper | a bobby-soxer | a half-grown person | not yet an adult | a non-adult
a prepubertal person | an immature person
"""
AGES = """
a 12-year-old on a horse | a twelve year old | 12 years old | a 9 year-old | an 8-years-old player
sixteen-year-olds | nineteen year olds | a 19-year-old singer | a ten-month-old | three weeks old | 14 yo
a 14yo | 14 y/o | 14 y.o. | 7yrs | aged nine | aged 9 | aged: 9 | age 5 | ages 5-7 | age of 15
at the age of fifteen | aged about six | aged xii | under 18 | under-16s | U16s | below the age of 17
younger than 10 | a year-old | a several-year-old | an l2-year-old | 8 to 25 year olds
between five and thirty years old | her 5th birthday | a first birthday | the sixteenth birthday cake
a birthday party | a bday cake | turning 9 | turned seventeen | sweet sixteen | grade 5 | a third grade
5th grade | year 9 | Year 7s | twelve years of age | a 16 years-aged person | ten summers old | a person who is 13
she is thirteen | he's only 9 | she looks sixteen | a swimmer, 16 | Ada (15) on a horse | sub-18 | <18 | < 18
17F | 16/f | f17 | m 16 | 16 and pregnant | sixteen-and-pregnant
"""
OBFUSCATED = [
    "a ch1ld on a swing",
    "a ch!ld on a swing",
    "a chi1d on a swing",
    "a k1d with a kite",
    "a b0y with a kite",
    "a g1rl",
    "a g!rl",
    "a gir|",
    "t33ns",
    "a t3enager",
    "a 7oddler",
    "b@by",
    "a 8aby",
    "boyz",
    "kidz",
    "a c-h-i-l-d",
    "a c h i l d",
    "c.h.i.l.d",
    "a b_o_y",
    "a g i r l with a kite",
    "k i d s",
    "a ch ild",
    "a tod dler",
    "todd-ler",
    "ch*ld",
    "g**l",
    "a k*d",
    "b#y",
    "a ki.d",
    "chiiiild",
    "booooy",
    "A KiD",
    "ｃｈｉｌｄ",
    "a 𝐜𝐡𝐢𝐥𝐝",
    "a 𝓰𝓲𝓻𝓵",
    "a ⓚⓘⓓ",
    "a 🅺🅸🅳",
    "🇰🇮🇩",
    "a 👧 on a bicycle",
    "👶",
    "a 🧒🏽 with a kite",
    "a 👨‍👩‍👧 at a table",
    "a ki\u200bd with a kite",
    "a c\u00adh\u00adi\u00adl\u00add",
    "a g\u2060irl",
    "a \ufeffboy",
    "a bo\u034fy",
    "a gírl",
    "a chïld",
    "a b\u0308o\u0308y\u0308",
    "a \u043aid",  # Cyrillic
    "a chil\u0501",
    "a \u0441hild",
    "a b\u03bfy",  # Greek omicron
    "a g\u0131rl",  # dotless i
    "a ɢɪʀʟ",  # small capitals
    "a bøy",
    "ребёнок",
    "孩子",
    "a １２-year-old",
    "a ١٢-year-old",
    "a 12\u2011year\u2011old",
    "a 12 \u2014 year \u2014 old",
    "a 1\u200b2-year-old",
    "a ⑫-year-old",
    "\u202edlihc a",  # written from right to left
]
NO_MINOR = """
a man on a horse | a woman reads a newspaper | people at a market | a person in a hat | a crowd in a street
a vase filled with white flowers sits on top of a table | a skid loader | a kidney-shaped pool
a season of rain | soon | a reason | a 35-year-old man | a forty-year-old tree | a forty-five year old car
42 years old | aged 42 | an aged man | a middle-aged woman | a hundred-year-old house | her 50th birthday
a thirtieth birthday | a twenty-first birthday | number 5 on a shirt | the number 7 bus to 7 people
fifteen bottles | a canteen | a package | a tower | a wardrobe | a café with jalapeños | a smørrebrød
a Boeing 707 | a dog...lying on a sofa | 20 years ago | a majority | an elephant | a totem | a garbage truck
he is one of many | she is 35 | a painter, 41 | Ada (52) on a horse | f/2.8 | the year 1990 | a grape | branches
a broom | a life-size statue | shoes of all sizes | a parking zone | a cube of ice | a tote bag
adults | a bouquet of roses, tied | a glass of wine (red) | total | #1 of 10
"""


def cases(text: str) -> list[str]:
    return [case.strip() for case in re.split(r"[|\n]", text) if case.strip()]


HARD = [*cases(PLAIN), *cases(AGES), *OBFUSCATED]
FREE = cases(NO_MINOR)


def test_there_are_enough_hard_cases() -> None:
    assert len(HARD) >= 200 and len(FREE) >= 40


@pytest.mark.parametrize("caption", HARD)
def test_who_could_be_a_minor_is_offered_no_sexual_category(caption: str) -> None:
    for told in (caption, caption.upper(), f"In the picture, {caption}, by the sea."):
        assert ethics.minor_hint([told]), told
        assert ethics.offered(CATEGORIES, [told]) == tuple(name for name in CATEGORIES if name != "sexual")
        assert ethics.violation([told], "a person next to a pistol", "sexual")
        assert ethics.violation(["a person"], told, "sexual")


@pytest.mark.parametrize("caption", FREE)
def test_others_are_offered_all_categories(caption: str) -> None:
    assert ethics.minor_hint([caption]) is None
    assert ethics.offered(CATEGORIES, [caption]) == CATEGORIES
    assert ethics.violation([caption], f"{caption} next to a pistol", "violence") is None


def test_every_caption_of_an_image_counts() -> None:
    assert "sexual" not in ethics.offered(CATEGORIES, ["a person on a swing", "somebody swings", "a girl on a swing"])
    assert ethics.violation(["a person on a swing", "a girl on a swing"], "a naked person", "shocking")


@pytest.mark.parametrize(
    "category", ["sexual", "Sexual", " SEXUAL ", "sexual content", "s3xual", "s e x u a l", "ѕexual"]
)
def test_the_sexual_category_is_known_by_any_name(category: str) -> None:
    assert ethics.is_sexual(category)
    assert ethics.violation(["a boy on a swing"], "a boy on a swing", category)


@pytest.mark.parametrize("category", [name for name in CATEGORIES if name != "sexual"])
def test_other_categories_are_not(category: str) -> None:
    assert not ethics.is_sexual(category)
    assert ethics.violation(["a boy on a swing"], "a boy next to a pistol", category) is None


@pytest.mark.parametrize(
    "added", ["naked", "nude", "N U D E", "nаked", "n@ked", "t-o-p-l-e-s-s", "in lingerie", "without clothes", "p*rn"]
)
def test_sexual_words_are_refused_whatever_the_category_says(added: str) -> None:
    assert ethics.violation(["a boy on a swing"], f"a boy {added} on a swing", "violence")


def test_nothing_is_refused_for_those_who_are_surely_grown_up() -> None:
    assert ethics.violation(["a man on a sofa"], "a naked man on a sofa", "sexual") is None


def test_what_cannot_be_read_counts_as_both() -> None:
    assert ethics.minor_hint(["a дом"]) == ethics.UNREADABLE
    assert ethics.sexual_hint("a дом") == ethics.UNREADABLE
    assert ethics.violation(["a boy"], "a boy next to a дом", "violence")


words = st.sampled_from([*(word for case in FREE for word in case.split()), "on", "a", "the", "with"])


@given(st.sampled_from(HARD[: len(cases(PLAIN))]), st.lists(words, max_size=6), st.lists(words, max_size=6))
@example("a kid with a kite", ["the"], [])
def test_no_surroundings_hide_a_child_term(caption: str, before: list[str], after: list[str]) -> None:
    assert ethics.minor_hint([" ".join([*before, caption, *after])])


@given(st.text(max_size=60))
def test_any_text_can_be_judged(text: str) -> None:
    plain = ethics.readable(text)
    assert plain == plain.lower()
    if not plain.isascii():
        assert ethics.minor_hint([text]) == ethics.UNREADABLE


def test_the_lists_say_why_and_repeat_nothing() -> None:
    groups = yaml.safe_load(ethics.WORDS.read_text(encoding="utf-8"))
    assert set(groups) == {"minors", "sexual"}
    for entries in groups.values():
        assert all(entry["why"] for entry in entries)
        listed = [
            word for entry in entries for kind in ("anywhere", "words", "phrases") for word in entry.get(kind, ())
        ]
        assert len(listed) == len(set(listed))
        assert all(word == word.lower() and word.isascii() for word in listed)
    assert len([word for entry in groups["sexual"] for word in entry.get("words", ())]) <= 15
