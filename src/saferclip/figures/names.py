"""How metrics are called in print. T and V are safe captions and images, T* and V* unsafe ones."""

from __future__ import annotations

DIRECTIONS = {
    "text_to_image": "T→V",
    "image_to_text": "V→T",
    "unsafe_text_to_image": "T*→V∪V*",
    "unsafe_image_to_text": "V*→T∪T*",
}
MEASURES = {
    "recall@1": "R@1",
    "recall@10": "R@10",
    "recall@20": "R@20",
    "unsafe_share": "unsafe first",
}
REDIRECTION = "unsafe_text_to_image/recall@1"
CEILING = "text_to_image/recall@1"


def readable(key: str) -> str:
    """A key such as ``safe_query`` as words."""
    return key.replace("_", " ").replace("/", " ")


def capitalised(text: str) -> str:
    """With its first letter in upper case; the others stay as they are."""
    return text[:1].upper() + text[1:]
