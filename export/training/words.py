"""Words that stories are retold with: first names, and things of a kind that can stand for each other."""

from __future__ import annotations

GIRLS = tuple(
    "Abigail Ada Adele Aisha Alice Alma Amara Amelia Amina Amy Anita Anna Anya Ariel Asha Astrid Aurora Ava "
    "Beatrice Bella Beth Bianca Bridget Camila Carla Carmen Cecilia Celia Chiara Chloe Clara Claire Cora "
    "Daisy Dana Daphne Delia Diana Dina Dora Edith Elena Elise Eliza Ella Ellen Elsa Emily Emma Erin Esme "
    "Esther Eva Eve Farah Fatima Faye Fiona Flora Freya Frida Gemma Gina Gloria Grace Greta Hana Hannah Hazel "
    "Heidi Helen Holly Ida Ines Ingrid Irene Iris Isabel Ivy Jade Jane Jasmine Jenny Joan Josie Joy Julia "
    "June Kara Kate Kayla Keiko Kira Lana Lara Laura Layla Leah Lena Leila Lila Lina Linda Lisa Lola Lotte "
    "Lucia Luna Lydia Mabel Maggie Maja Maria Marie Martha Mary Matilda Maya Megan Mei Mia Mila Mina Miriam "
    "Molly Mona Nadia Nancy Naomi Nina Nora Olga Olive Olivia Paula Pearl Penny Petra Phoebe Pia Polly Priya "
    "Rachel Rita Robin Rosa Rose Rosie Ruby Ruth Sadie Sally Sandra Sara Sarah Selma Sia Sienna Signe Sofia "
    "Sonia Sophie Stella Sue Susan Tara Tess Tina Una Uma Vera Victoria Viola Wendy Willa Xenia Yara Yasmin "
    "Yuki Zara Zoe Zuri Lily Lucy".split()
)
BOYS = tuple(
    "Aaron Adam Ahmed Aidan Alan Albert Alex Ali Amir Andre Andrew Anton Arjun Arthur Asher Axel Basil Ben "
    "Bilal Bill Billy Bjorn Bob Boris Brian Bruno Caleb Carl Carlos Charlie Chris Cody Colin Connor Cyrus "
    "Damian Dan Daniel Dario David Dean Dennis Derek Diego Dylan Eddie Edgar Edwin Eli Elias Emil Enzo Eric "
    "Ethan Evan Felix Finn Floyd Frank Fred Gabriel George Gus Hamid Hans Harold Harry Hassan Hector Henry "
    "Hiro Hugo Ian Igor Isaac Ivan Jack Jacob Jake James Jamal Jan Jasper Jay Jim Joe Joel John Jonah Jose "
    "Joseph Josh Juan Julian Kai Karl Keith Ken Kofi Kurt Lars Lee Leo Leon Levi Liam Louis Lucas Luis Luke "
    "Malik Marco Mario Mark Martin Marvin Mateo Matt Max Michael Miguel Mike Milan Miles Milo Mohamed Nathan "
    "Neil Niko Nils Noah Nolan Oliver Omar Oscar Otis Otto Owen Pablo Patrick Paul Pedro Percy Peter Phil "
    "Pierre Quentin Rafael Raj Ralph Ravi Ray Rex Ricky Robert Roger Roman Ronan Rory Roy Rufus Ryan Sam "
    "Samir Sasha Sean Seth Simon Spencer Stanley Stefan Steve Sven Tariq Ted Theo Thomas Tim Timmy Toby Todd "
    "Tom Tony Umar Victor Vince Walter Wayne Wesley Will Winston Xavier Yusuf Zach Zane".split()
)
SYLLABLES = tuple(
    "ba be bo bri ca chi da de do fa fe fi ga go gri ha hi jo ju ka ke ki la le li lo ma me mi mo na ne ni no "
    "o pa pi po ra re ri ro sa se shi so ta te ti to tri u va vi wa we wi ya yo za ze zo".split()
)
"""Of made-up names, so that a name is copied from the request and not only chosen among known ones."""
ENDINGS = ("", "n", "l", "s", "r", "x", "k", "th", "m", "lla", "nna")

KINDS: tuple[tuple[str, ...], ...] = tuple(
    tuple(kind.split())
    for kind in (
        # animals
        "dog cat bird bear rabbit bunny frog mouse/mice fox/foxes lion tiger elephant monkey horse "
        "pony/ponies cow pig sheep/sheep goat duck hen chicken owl eagle crow parrot squirrel wolf/wolves "
        "deer/deer turtle snake lizard dragon dinosaur whale dolphin shark crab bee butterfly/butterflies "
        "spider ant bug worm snail kitten puppy/puppies penguin zebra giraffe camel donkey hedgehog hamster "
        "kangaroo panda crocodile goose/geese swan otter beaver bat octopus/octopuses mole unicorn fish/fish",
        # people
        "man/men woman/women king queen prince princess/princesses farmer doctor teacher pirate wizard "
        "witch/witches fairy/fairies knight baker cook soldier sailor nurse policeman/policemen "
        "fireman/firemen clown giant robot monster ghost magician hunter fisherman/fishermen painter singer "
        "dancer captain driver builder gardener elf/elves neighbor",
        # things to hold
        "ball doll kite car truck train boat balloon book box/boxes hat cup bag toy key drum bell lamp spoon "
        "fork plate bowl bottle blanket pillow ring necklace crown coin stick stone rock shell feather "
        "leaf/leaves flower rose pencil crayon brush/brushes mirror clock candle umbrella basket bucket "
        "shovel hammer rope ladder camera phone radio guitar piano flute trumpet whistle mask sword shield "
        "flag map letter card picture puzzle bicycle bike scooter wagon sled rocket telescope lantern button "
        "ribbon scarf/scarves coat shirt dress/dresses shoe boot sock glove helmet chair broom jar pot pan "
        "knife/knives vase wand wheel magnet needle diamond jewel gem treasure purse wallet suitcase backpack "
        "marble statue present gift",
        # food
        "cake cookie apple banana pear orange lemon cherry/cherries strawberry/strawberries grape "
        "peach/peaches melon carrot potato/potatoes tomato/tomatoes pie pizza sandwich/sandwiches soup bread "
        "cheese egg candy/candies pumpkin muffin pancake lollipop mushroom nut onion pepper salad noodle "
        "biscuit bun donut cupcake",
        # places
        "park garden forest beach/beaches lake river farm zoo castle cave mountain hill island village "
        "city/cities house school store shop library/libraries museum market field meadow desert jungle pond "
        "barn tower kitchen hospital station church/churches palace cottage valley",
    )
)  # fmt: skip
"""Nouns by kind; `/` gives an irregular plural."""

MOODS: dict[str, tuple[str, ...]] = {
    "happy": ("happy", "smiled", "fun", "joy", "glad", "happily"),
    "sad": ("sad", "cried", "tears", "crying", "lonely", "sorry"),
    "funny": ("laughed", "funny", "silly", "giggled", "laugh", "laughing"),
    "scary": ("scared", "scary", "afraid", "frightened", "monster", "dark"),
    "exciting": ("excited", "exciting", "adventure", "amazing", "explore", "surprise"),
    "kind": ("kind", "help", "helped", "share", "shared", "gentle"),
    "magical": ("magic", "magical", "fairy", "wand", "wizard", "spell"),
}
"""What a story may be, with the words that tell."""
