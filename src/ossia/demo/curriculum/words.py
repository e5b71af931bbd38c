"""Names and words: some real, most composed from syllables, so that copying is learnt and not a list of names."""

from random import Random

FIRST_NAMES = (
    "Anna Ben Clara David Emma Felix Grace Hugo Iris Jack Kate Leo Maya Noah Olga Paul Quinn Rosa Sam Tara Uma Victor "
    "Wendy Xander Yara Zoe Omar Lena Mia Nina Ravi Sara Tom Ivan Juan Kenji Aisha Chen Fatima Lars"
).split()
CITIES = (
    "Oslo Paris Rome Berlin Madrid Lisbon Vienna Prague Dublin London Tokyo Cairo Lima Delhi Seoul Boston Chicago "
    "Sydney Toronto Geneva Athens Warsaw Helsinki Nairobi Denver Austin Kyoto Milan Porto Bergen"
).split()
COLORS = "red blue green yellow black white orange purple pink brown gray silver gold".split()
OBJECTS = (
    "apples pears books coins stamps cards marbles pencils eggs shells buttons cookies stickers flowers balls cups "
    "plates keys boxes stones beads candles oranges tickets toys nuts leaves lemons"
).split()
COMMON = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city name team minute idea body back parent face level office door "
    "health art war history party result change morning reason research girl boy moment air teacher force education "
    "food music river mountain ocean planet star moon sun forest tree bird fish horse dog cat bread cheese soup garden "
    "winter summer spring autumn rain snow wind storm fire stone metal glass paper letter poem song dance paint light "
    "color sound voice language number shape circle square table chair window kitchen bridge road train plane "
    "ship boat "
    "engine wheel clock phone camera computer keyboard screen robot island desert valley castle king queen knight "
    "doctor nurse farmer soldier artist writer singer actor lawyer judge baker market shop bank hospital museum library"
).split()
_ONSETS = "b br c ch d dr f fl g gr h j k kl l m n p pr r s sh st t tr v w z".split()
_VOWELS = "a e i o u a e o ai ea ou".split()
_CODAS = ["", "", "", "n", "r", "l", "s", "m", "t", "x", "nd", "rt", "ck"]
_TOWN_ENDS = "ton ville burg ford ham field port stad dale wick mouth haven".split()
_FAMILY_ENDS = "son er man sky ez ini wood ley sen ova berg stone".split()


def syllable(rng: Random) -> str:
    """An onset, a vowel and perhaps a coda."""
    return rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)


def invented(rng: Random, low: int = 2, high: int = 3) -> str:
    """A word that is in no dictionary, or only by chance."""
    return "".join(syllable(rng) for _ in range(rng.randint(low, high)))


def first_name(rng: Random) -> str:
    """A given name, one in two invented."""
    return rng.choice(FIRST_NAMES) if rng.random() < 0.5 else invented(rng, 1, 2).capitalize()


def person(rng: Random) -> str:
    """A given name, often with a family name."""
    if rng.random() < 0.5:
        return first_name(rng)
    return f"{first_name(rng)} {(syllable(rng) + rng.choice(_FAMILY_ENDS)).capitalize()}"


def city(rng: Random) -> str:
    """A town, half of them invented."""
    if rng.random() < 0.5:
        return rng.choice(CITIES)
    return (syllable(rng) + rng.choice(_TOWN_ENDS)).capitalize()


def code(rng: Random) -> str:
    """A reference such as K4-731."""
    return f"{rng.choice('ABCDEFGHJKLMNPQRSTUVWXYZ')}{rng.randint(1, 9)}-{rng.randint(100, 999)}"


def email(rng: Random) -> str:
    """An address at a domain reserved for examples."""
    return f"{first_name(rng).lower()}@example.{rng.choice(('com', 'org', 'net'))}"


def phrase(rng: Random) -> str:
    """Two or three common words."""
    return " ".join(rng.choice(COMMON) for _ in range(rng.randint(2, 3)))
