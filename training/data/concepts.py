"""What the model knows: concepts with a plain name, a category and a kind, each drawn by several teams.

The rule for a candidate: a thing one can point at, of Unicode's five concrete groups, not one of several
near-duplicates (of dog and dog face, one concept takes one or both), with five or more training drawings
and one in the unseen style. The grouping is coarser than Unicode's, and in a user's words.

The rule for a concept: its drawings agree across teams. On the training drawings alone, each family was
left out in turn and its drawings named from the teacher's features by ridge regression fitted to the other
families; a candidate named right less than two times in three is set aside. Its drawings still train the
eye. Seven that fell short but are what people try first were kept: dog, rabbit, horse, banana, butterfly,
airplane, star.
"""

from dataclasses import dataclass

# category → kind → "name" or "name = emoji short names", separated by commas
_TABLE = {
    "animal": {
        "mammal": "dog, cat, rabbit, fox = fox_face, bear, panda = panda_face, koala, tiger, "
        "lion = lion_face, cow, pig, "
        "monkey = monkey_face, horse, elephant, camel, sheep, mouse, bat",
        "bird": "rooster, chick = baby_chick hatched_chick, penguin, owl, duck, eagle",
        "sea animal": "fish = fish tropical_fish, octopus, whale = whale whale2, dolphin, crab, shark, shell",
        "bug": "bee, ladybug, butterfly, ant, spider, snail, caterpillar = bug",
        "reptile": "snake, turtle, crocodile",
        "amphibian": "frog",
    },
    "food": {
        "fruit": "apple = apple green_apple, banana, grapes, watermelon, lemon, pineapple, cherries, "
        "strawberry, peach, "
        "pear, orange = tangerine, kiwi = kiwifruit",
        "vegetable": "tomato, corn, eggplant, carrot, avocado, mushroom",
        "meal": "hamburger, pizza, french fries = fries, hot dog = hotdog, taco, sushi, spaghetti, "
        "fried egg = fried_egg, "
        "bread, croissant, cheese = cheese_wedge, popcorn, bacon, pancakes",
        "sweet": "doughnut, cookie, ice cream = icecream, cake = cake birthday, "
        "chocolate = chocolate_bar, candy, lollipop",
    },
    "drink": {
        "hot drink": "coffee, tea",
        "alcoholic drink": "beer = beer beers, wine = wine_glass, cocktail, champagne",
    },
    "plant": {
        "tree": "tree = deciduous_tree, pine tree = evergreen_tree, palm tree = palm_tree, "
        "christmas tree = christmas_tree",
        "flower": "tulip, rose, sunflower, hibiscus, cherry blossom = cherry_blossom, bouquet",
        "leafy plant": "clover = four_leaf_clover shamrock, maple leaf = maple_leaf, seedling, cactus",
    },
    "vehicle": {
        "road vehicle": "car, taxi, ambulance, fire truck = fire_engine, bus, truck, tractor, "
        "racing car = racing_car",
        "two-wheeler": "bicycle = bike, motorcycle = racing_motorcycle",
        "rail vehicle": "locomotive = steam_locomotive, train = train2",
        "aircraft": "airplane, helicopter, rocket",
        "boat": "ship, sailboat = boat, speedboat",
    },
    "building": {
        "home": "house, castle = european_castle, tent",
        "place of worship": "church, mosque",
        "public building": "factory, hospital, stadium",
        "landmark": "tower = tokyo_tower, statue = statue_of_liberty, fountain",
        "amusement ride": "ferris wheel = ferris_wheel, roller coaster = roller_coaster, "
        "circus tent = circus_tent",
    },
    "clothing": {
        "headwear": "top hat = tophat, crown, graduation cap = mortar_board",
        "footwear": "high heel = high_heel, boot, sneaker = athletic_shoe",
        "garment": "shirt, jeans, dress, bikini, kimono, necktie",
        "accessory": "glasses = eyeglasses dark_sunglasses, handbag, ring, backpack = school_satchel, "
        "lipstick",
    },
    "musical instrument": {
        "wind instrument": "saxophone, trumpet",
        "string instrument": "guitar, violin",
        "keyboard instrument": "piano = musical_keyboard",
        "drum": "drum = drum_with_drumsticks",
    },
    "sport": {
        "ball": "soccer ball = soccer, basketball, football, baseball, volleyball, billiard ball = 8ball",
        "sports gear": "skis = ski, ice skate = ice_skate, boxing glove = boxing_glove, bowling, golf, "
        "target = dart",
        "prize": "trophy, medal = sports_medal",
    },
    "sky and weather": {
        "weather": "cloud, rain = rain_cloud, rainbow, snowflake, lightning = zap, tornado, "
        "snowman = snowman_without_snow "
        "snowman, umbrella = umbrella umbrella_with_rain_drops",
        "heavenly body": "sun = sunny sun_with_face, moon = crescent_moon, star",
    },
    "tool": {
        "hand tool": "hammer, wrench, scissors, knife = hocho, gear, key, lock",
        "writing tool": "pencil = pencil2, pen = lower_left_fountain_pen, paintbrush = lower_left_paintbrush",
        "scientific instrument": "microscope, telescope, magnifying glass = mag mag_right, syringe",
        "light": "light bulb = bulb, flashlight, candle",
    },
    "electronics": {
        "phone": "telephone = phone, mobile phone = iphone",
        "computer": "laptop = computer, keyboard, game controller = video_game",
        "media device": "television = tv, camera, radio, headphones, microphone",
        "power supply": "battery, plug = electric_plug",
    },
    "household item": {
        "timepiece": "watch, hourglass, alarm clock = alarm_clock",
        "bathroom fixture": "toilet, bathtub",
        "reading matter": "book, newspaper, scroll, envelope = email",
        "container": "package, gift, money bag = moneybag",
        "decoration": "balloon, bell, jack-o-lantern = jack_o_lantern",
    },
}


@dataclass(frozen=True)
class Concept:
    """One thing the model can name. `emoji` are emoji-datasource short names."""

    name: str
    category: str
    kind: str
    emoji: tuple[str, ...]


def _concepts(category: str, kind: str, listing: str) -> list[Concept]:
    entries = (entry.partition(" = ") for entry in listing.split(", "))
    return [Concept(name, category, kind, tuple((emoji or name).split())) for name, _, emoji in entries]


CANDIDATES = tuple(
    concept
    for category, kinds in _TABLE.items()
    for kind, listing in kinds.items()
    for concept in _concepts(category, kind, listing)
)
SET_ASIDE = frozenset(
    [
        "fox",
        "koala",
        "cow",
        "elephant",
        "sheep",
        "bat",
        "owl",
        "eagle",
        "fish",
        "octopus",
        "dolphin",
        "shark",
        "bee",
        "spider",
        "snail",
        "caterpillar",
        "orange",
        "kiwi",
        "corn",
        "carrot",
        "taco",
        "sushi",
        "croissant",
        "pancakes",
        "cake",
        "candy",
        "lollipop",
        "coffee",
        "tea",
        "pine tree",
        "hibiscus",
        "cherry blossom",
        "bouquet",
        "ambulance",
        "truck",
        "train",
        "ship",
        "castle",
        "tent",
        "church",
        "mosque",
        "factory",
        "hospital",
        "stadium",
        "fountain",
        "high heel",
        "bikini",
        "kimono",
        "backpack",
        "lipstick",
        "volleyball",
        "skis",
        "ice skate",
        "boxing glove",
        "cloud",
        "rain",
        "tornado",
        "knife",
        "magnifying glass",
        "syringe",
        "headphones",
        "microphone",
        "plug",
        "alarm clock",
        "toilet",
        "bathtub",
    ]
)
CONCEPTS = tuple(concept for concept in CANDIDATES if concept.name not in SET_ASIDE)
CONCEPT_BY_EMOJI = {emoji: concept for concept in CONCEPTS for emoji in concept.emoji}
CANDIDATE_BY_EMOJI = {emoji: concept for concept in CANDIDATES for emoji in concept.emoji}
