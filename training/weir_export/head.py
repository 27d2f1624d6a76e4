"""The fish head: which of ImageNet's 1000 classes are fish, and how the others are combined."""

import numpy as np

# ImageNet class index -> label, in the order of the output.
FISH = {
    0: "tench",
    1: "goldfish",
    2: "great_white_shark",
    3: "tiger_shark",
    4: "hammerhead",
    5: "electric_ray",
    6: "stingray",
    389: "barracouta",
    390: "eel",
    391: "coho",
    392: "rock_beauty",
    393: "anemone_fish",
    394: "sturgeon",
    395: "gar",
    396: "lionfish",
    397: "puffer",
}
# Represents the likeliest of the other 984 classes.
NOT_FISH = "not_fish"
LABELS = (*FISH.values(), NOT_FISH)


def fish_first(weight: np.ndarray, bias: np.ndarray):
    """The linear layer (weight [classes, features], bias [classes]) with its rows in the order: fish,
    then the rest. Neither the softmax nor the maximum over the rest minds the order, and the head becomes one
    cut at row 16."""
    fish = list(FISH)
    rest = [index for index in range(len(bias)) if index not in FISH]
    return weight[fish + rest], bias[fish + rest]
