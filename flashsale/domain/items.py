"""What the numbered items of a sale are called and look like: worked out from sale and number, and kept nowhere.

They stand in for a seller's own names and pictures: the same ones at every server, as long as the sale is remembered.
"""

from hashlib import sha256

from msgspec import Struct

# 64 x 64 x 16 names; most sales of 10,000 items have a few of them twice
_ADJECTIVES = (
    "Amber", "Ancient", "Arctic", "Autumn", "Bold", "Brave", "Bright", "Bronze", "Calm", "Candid", "Cedar", "Clever",
    "Coastal", "Cobalt", "Copper", "Coral", "Cosmic", "Crimson", "Crystal", "Dapper", "Daring", "Dusky", "Eager",
    "Early", "Electric", "Emerald", "Fabled", "Fearless", "Floral", "Gentle", "Gilded", "Golden", "Grand", "Hidden",
    "Humble", "Indigo", "Ivory", "Jolly", "Keen", "Lively", "Lucky", "Lunar", "Mellow", "Midnight", "Misty", "Noble",
    "Nordic", "Opal", "Patient", "Polished", "Proud", "Quiet", "Rapid", "Royal", "Rustic", "Scarlet", "Silent",
    "Silver", "Solar", "Spring", "Sturdy", "Velvet", "Vivid", "Winter",
)  # fmt: skip
_NOUNS = (
    "Anchor", "Armchair", "Backpack", "Banjo", "Basket", "Beacon", "Bicycle", "Blanket", "Bottle", "Bracelet", "Camera",
    "Candle", "Canvas", "Carafe", "Clock", "Compass", "Cup", "Cushion", "Drum", "Easel", "Fiddle", "Flask", "Flute",
    "Globe", "Guitar", "Hammock", "Helmet", "Jacket", "Jar", "Journal", "Kettle", "Kite", "Ladder", "Lamp", "Lantern",
    "Locket", "Mirror", "Mug", "Notebook", "Paddle", "Parasol", "Pendant", "Pillow", "Pitcher", "Planter", "Plate",
    "Poster", "Puzzle", "Quilt", "Radio", "Ring", "Saddle", "Satchel", "Scarf", "Sled", "Statue", "Stool", "Suitcase",
    "Teapot", "Telescope", "Toolbox", "Trumpet", "Umbrella", "Vase",
)  # fmt: skip
_KINDS = (
    "No. 1", "No. 2", "No. 3", "No. 5", "No. 7", "No. 9", "Classic", "Deluxe", "Grande", "Lite", "Mini", "Original",
    "Plus", "Prime", "Studio", "Travel",
)  # fmt: skip

_SIDE = 240  # of a picture, in its own units


class Item(Struct, frozen=True, kw_only=True):
    """One of the numbered items of a sale."""

    number: int
    """From 1 on."""
    name: str
    colour: str
    """Of its picture: # and six hex digits."""
    seed: int
    """32 bits that decide what else is in the picture."""


def make_item(product_id: str, number: int) -> Item:
    """Return an item of a sale; the same one whenever it is asked for."""
    digest = sha256(f"{product_id} {number}".encode()).digest()
    words = (_ADJECTIVES[digest[0] % 64], _NOUNS[digest[1] % 64], _KINDS[digest[2] % 16])
    # neither so dark nor so bright that white writing on a darker band cannot be read
    red, green, blue = (72 + value % 128 for value in digest[3:6])
    return Item(
        number=number,
        name=" ".join(words),
        colour=f"#{red:02x}{green:02x}{blue:02x}",
        seed=int.from_bytes(digest[6:10], "big"),
    )


def draw(item: Item) -> str:
    """Return a picture of an item, as the text of an SVG file of less than 2 kB."""
    shapes = "".join(_draw_disc(item.seed >> (8 * position) & 0xFF, position) for position in range(4))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIDE} {_SIDE}" role="img"'
        f' aria-label="{item.name}, item {item.number}">'
        f'<rect width="{_SIDE}" height="{_SIDE}" fill="{item.colour}"/>{shapes}'
        f'<rect y="164" width="{_SIDE}" height="76" fill="#000" fill-opacity=".55"/>'
        '<g fill="#fff" font-family="sans-serif" text-anchor="middle">'
        f'<text x="120" y="196" font-size="17">{item.name}</text>'
        f'<text x="120" y="222" font-size="15" fill-opacity=".85">#{item.number}</text></g></svg>\n'
    )


def _draw_disc(seed: int, position: int) -> str:
    """Return one of the discs in a picture, of which eight bits decide where it is and how large."""
    x, y = 24 + 64 * position + seed % 16 - 8, 30 + (seed >> 4) % 16 * 7
    return f'<circle cx="{x}" cy="{y}" r="{20 + seed % 5 * 6}" fill="#fff" fill-opacity=".{2 + position}"/>'
