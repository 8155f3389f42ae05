"""What is put in a field's place, by the type of what stands there."""

LONG = {many: "a" * many for many in (53, 64, 254, 300)}

TEXTS = [
    "", "x", "A", "-a", "a-", "a..b", "a.b", "a/b", "a/b/c", "/a", "../a", "..", ".", "*", "*.a", "Bad_Value!", "é",
    " x", "x y",
    "http://x y", "https://a.b/c?d#e", "01.2.3.4", "1.2.3.4", "1.2.3.4/24", "1.2.3.0/24", "::1", "::ffff:1.2.3.4",
    "fe80::/64",
    "a:b", "kubernetes.io/a", "example.com/a", "true", "7", "0", "-1", "self.x +", "a%b", "1a", "UPPER", "a_b",
    "a--b", "a=b", "\n",
    "2020-01-01T00:00:00Z", "2020-01-01T00:00:00.5+01:00", "2020-01-01", "150%", "-5%", "5%", "10Gi", "1E", "1e3",
    "0.5m", "1.5",
    "61 * * * *", "@daily", "TZ=UTC * * * * *", "YQ==", "a b=", "v1", "apps/v1", "$(X)", *LONG.values(),
]
NUMBERS = [0, 1, -1, 5, 101, 65536, 2147483648, -2147483649, 9223372036854775807, 99999999999999999999, 1.5, 1e3, "x",
    "7", ""]
FLAGS = [True, False, "true", 1, ""]
LISTS = [[], [None], [{}], [1], [""], ["x"], ["x", "x"], ["*", "x"], ["Bad_Value!"], [[]], [True], ["*"] * 40]
MAPS = [
    {"": "x"}, {"bad key!": "v"}, {"a/b/c": "x"}, {"/a": "x"}, {"a/": "x"}, {"UPPER/x": "y"}, {"UP.per/x": "y"},
    {"k": "bad value!"},
    {"k": "a" * 64}, {"a" * 64: "x"}, {"a" * 254 + "/x": "y"}, {"a": 1}, {"a": None}, {"a": ["x"]}, {"a": True},
    {"kubernetes.io/a": "b"},
]
AMOUNTS = [
    {"cpu": "-1"}, {"cpu": "1"}, {"foo": "1"}, {"example.com/a": "0.5"}, {"example.com/a": "2"}, {"cpu": "x"},
    {"cpu": ""}, {"cpu": None},
    {"memory": "0.5m"}, {"memory": 1}, {"memory": 1.5}, {"hugepages-2Mi": "3Mi"}, {"requests.cpu": "1"},
    {"count/x": "1"}, {"pods": "0.5"},
    {"kubernetes.io/x": "1"}, {"storage": "1"}, {"ephemeral-storage": "1Zi"}, {"cpu": "1", "memory": "1Ei"},
    {"bad key": "1"},
]
# Of wrong type, whatever stands there.
STRANGE = [None, [], {}, "x", 7, True, 1.5, [1], {"a": "b"}]


def kind_of(value):
    """text, number, flag, list, map (of texts), amounts (of quantities) or fields."""
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, str):
        return "text"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, list):
        return "list"
    return "fields"


def kind_of_sample(name, sample):
    """As `kind_of`, by an upstream sample in which maps have the one key `<field>Key`."""
    if isinstance(sample, dict) and list(sample) == [name + "Key"]:
        inner = sample[name + "Key"]
        return "amounts" if inner == "0" else "map" if isinstance(inner, str) else "fields"
    return kind_of(sample)


BY_KIND = {"text": TEXTS, "number": NUMBERS, "flag": FLAGS, "list": LISTS, "map": MAPS, "amounts": AMOUNTS,
    "fields": [{}]}
