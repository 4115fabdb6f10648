"""The user's part of an endless conversation, and an answer of ours to each question."""

from itertools import cycle, islice
from typing import NamedTuple


class Turn(NamedTuple):
    """What the user says, an answer to score, and the turns since what it asks back about."""

    question: str
    reference: str
    back: int = 0  # 0: it asks about nothing said before


SCRIPT = (
    Turn(
        "Hello! My name is Ada and I live in a small town by the sea.",
        "Hello Ada, it is nice to meet you. A small town by the sea sounds like a lovely place.",
    ),
    Turn(
        "What can I cook with eggs and potatoes?",
        "You can make an omelette. Fry the potatoes in oil until they are soft, then pour the "
        "beaten eggs over them and cook slowly.",
    ),
    Turn(
        "Why is the sky blue?",
        "The sky is blue because the air scatters the blue light of the sun more than the red.",
    ),
    Turn(
        "What is my name, and where do I live?",
        "Your name is Ada, and you live in a small town by the sea.",
        back=3,
    ),
    Turn(
        "How do plants drink water?",
        "Plants take up water from the soil with their roots. It rises through the stem and leaves "
        "the plant through its leaves.",
    ),
    Turn(
        "My cat is called Pip. What should I feed a cat?",
        "You should feed Pip cat food with plenty of meat in it, and always give fresh water.",
    ),
    Turn(
        "Tell me a short story about a fox.",
        "Once upon a time there was a young fox who lived in the forest. One day he found a small "
        "bird that had fallen from its nest.",
    ),
    Turn("What is the name of my cat?", "The name of your cat is Pip.", back=2),
    Turn(
        "How far away is the moon?",
        "The moon is about 384,000 kilometers away from the Earth.",
    ),
    Turn(
        "What is a good way to learn to swim?",
        "A good way to learn to swim is to take lessons. Begin in shallow water, learn to float, "
        "and practice often.",
    ),
    Turn(
        "Why do leaves turn red in autumn?",
        "In autumn the days grow shorter and the leaves lose their green color, so that the red "
        "and yellow in them can be seen.",
    ),
    Turn("Do you remember my name?", "Yes, your name is Ada.", back=11),
    Turn(
        "How do I make tea?",
        "Boil fresh water, pour it over the tea leaves in a pot, and wait for three to five "
        "minutes before you pour it into a cup.",
    ),
    Turn(
        "What is a rainbow?",
        "A rainbow is an arc of colors in the sky. It appears when sunlight is bent and reflected "
        "by drops of rain.",
    ),
    Turn(
        "Give me three tips for sleeping well.",
        "Go to bed at the same time every day, keep your bedroom dark and quiet, and avoid coffee "
        "in the evening.",
    ),
    Turn(
        "What did I ask you just before this?",
        "You asked me for three tips for sleeping well.",
        back=1,
    ),
    Turn(
        "Why do ships float?",
        "Ships float because they push away water that weighs as much as the ship itself. This "
        "force is called buoyancy.",
    ),
    Turn(
        "How does a bicycle stay upright?",
        "A bicycle stays upright because the rider steers a little to the side to which it falls, "
        "which brings the wheels back under the weight.",
    ),
    Turn(
        "What is bread made of?",
        "Bread is made of flour, water, salt and yeast. The yeast makes the dough rise.",
    ),
    Turn("What is my cat called?", "Your cat is called Pip.", back=14),
    Turn(
        "Who invented the telephone?",
        "Alexander Graham Bell is credited with inventing the telephone in 1876.",
    ),
    Turn(
        "How can I save money on food?",
        "You can save money on food by planning your meals, cooking at home, and buying what is "
        "in season.",
    ),
    Turn(
        "What causes the tides?",
        "The tides are caused by the gravity of the moon and the sun, which pulls on the water of "
        "the oceans.",
    ),
    Turn(
        "Do I live by the sea or in the mountains?", "You live in a small town by the sea.", back=23
    ),
    Turn(
        "Why is exercise healthy?",
        "Exercise is healthy because it makes your heart and muscles stronger, and helps you to "
        "sleep better.",
    ),
    Turn(
        "How are clouds formed?",
        "Clouds are formed when warm, moist air rises and cools, so that the water vapor turns "
        "into tiny drops.",
    ),
    Turn(
        "Write two lines of a poem about rain.",
        "The rain falls softly on the ground, and fills the night with a gentle sound.",
    ),
    Turn("What was your poem about?", "My poem was about rain.", back=1),
    Turn(
        "How do bees make honey?",
        "Bees collect nectar from flowers and bring it to the hive, where it is dried until it "
        "becomes honey.",
    ),
    Turn(
        "What is the largest ocean?",
        "The largest ocean is the Pacific Ocean. It covers about a third of the Earth's surface.",
    ),
    Turn(
        "How do I plant tomatoes?",
        "Plant tomatoes in a sunny place with rich soil. Put them deep into the ground, and water "
        "them regularly.",
    ),
    Turn("What is my name?", "Your name is Ada.", back=31),
    Turn(
        "Why do we have leap years?",
        "We have leap years because the Earth needs about 365.25 days to travel around the sun.",
    ),
    Turn(
        "What is a good gift for a friend?",
        "A good gift for a friend is something that fits their interests, such as a book, a plant "
        "or a homemade cake.",
    ),
    Turn(
        "How does a candle burn?",
        "When a candle burns, the heat of the flame melts the wax. The wick draws it up, and its "
        "vapor burns in the air.",
    ),
    Turn(
        "What should I do if I have a cold?",
        "If you have a cold, you should rest, drink plenty of water, and see a doctor if it does "
        "not get better.",
    ),
    Turn(
        "How do birds find their way in winter?",
        "Birds find their way with the help of the sun, the stars, and the magnetic field of the "
        "Earth.",
    ),
    Turn("What is the capital of France?", "The capital of France is Paris."),
    Turn("What was my last question?", "You asked me what the capital of France is.", back=1),
    Turn(
        "Thank you, and goodbye!",
        "You're welcome, Ada! It was nice to talk with you. Goodbye!",
    ),
)


def script_of(turns: int) -> list[Turn]:
    """The first `turns` turns; after the last of them the script begins again."""
    return list(islice(cycle(SCRIPT), turns))
