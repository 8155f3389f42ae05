"""CEL rules over one schema (`FIELDS`), and objects they are asked about."""

STRING, INTEGER = {"type": "string"}, {"type": "integer"}


def small(schema, **limits):
    return {**schema, **limits}


# One field per type that CEL tells apart; the sizes are limited so that costs stay within the budget.
FIELDS = {
    "s": small(STRING, maxLength=64), "t": small(STRING, maxLength=64), "i": INTEGER, "j": {"type": "integer",
    "format": "int32"},
    "n": {"type": "number"}, "b": {"type": "boolean"}, "dt": {"type": "string", "format": "date-time"},
    "day": {"type": "string", "format": "date"}, "du": {"type": "string", "format": "duration"},
    "by": {"type": "string", "format": "byte"},
    "ios": {"x-kubernetes-int-or-string": True}, "nul": {"type": "string", "nullable": True, "maxLength": 9},
    "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    "e": {"type": "string", "enum": ["A", "B"]},
    "l": {"type": "array", "maxItems": 9, "items": small(STRING, maxLength=20)},
    "li": {"type": "array", "maxItems": 9, "items": INTEGER},
    "set": {"type": "array", "maxItems": 9, "x-kubernetes-list-type": "set", "items": small(STRING, maxLength=20)},
    "lm": {"type": "array", "maxItems": 9, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
    "items": {"type": "object", "required": ["k"], "properties": {"k": small(STRING, maxLength=9),
    "v": INTEGER}}},
    "m": {"type": "object", "maxProperties": 9, "additionalProperties": INTEGER},
    "ms": {"type": "object", "maxProperties": 9, "additionalProperties": small(STRING, maxLength=20)},
    "o": {"type": "object", "properties": {"x": INTEGER, "y": small(STRING, maxLength=9), "in": INTEGER,
    "a-b": INTEGER, "a.b": INTEGER,
    "__x__": INTEGER, "namespace": INTEGER, "a_b": INTEGER, "1a": INTEGER}},
    "unlimited": STRING, "ul": {"type": "array", "items": STRING}, "um": {"type": "object",
    "additionalProperties": STRING},
    "ull": {"type": "array", "items": {"type": "array", "items": STRING}},
}

# Rules whose compilation says something, or whose answer does.
RULES = """
true
1
'x'
self
self.s
self.missing
self.s == 1
self.i == 1.0
self.i == 'x'
self.n == 1
self.n > 1
self.n > 1.0
self.i + 1 > 2
self.i + 'x' == ''
self.i + 1.0 > 2.0
self.s + self.t == 'ab'
self.s * 2 == 'x'
self.i / 0 == 1
self.i % 0 == 1
-self.s == 'x'
!self.i
!self.b
self.b && self.i
self.b || 'x'
self.b ? 1 : 'x'
self.b ? self.s : self.t
self.i ? true : false
self.s.size() > 2
size(self.s) > 2
size(self.i) > 2
self.i.size() > 2
self.s.startsWith('a')
self.s.startsWith(1)
self.s.startsWith()
self.s.startswith('a')
startsWith(self.s, 'a')
self.s.contains('a') && self.s.endsWith('b')
self.s.matches('^a+$')
self.s.matches('[')
self.s.matches(self.t)
self.l.matches('a')
self.s in ['a', 'b']
self.s in [1, 2]
self.i in self.li
self.s in self.m
self.i in self.m
self.s in self.s
'a' in self.l
self.l == ['a']
self.l == [1]
self.l + self.l == self.l
self.l + self.li == self.l
self.l[0] == 'a'
self.l['x'] == 'a'
self.l[0.5] == 'a'
self.l[5] == 'a'
self.m['a'] == 1
self.m[1] == 1
self.m.a == 1
self.o['x'] == 1
self.o.x == 1
self.o.z == 1
self.o.__in__ == 1
self.o.in == 1
self.o.a__dash__b == 1
self.o.a__dot__b == 1
self.o.a_b == 1
self.o.__namespace__ == 1
self.o.namespace == 1
self.o.__underscores__x__underscores__ == 1
has(self.s)
has(self)
has(self.o.x)
has(self.m.a)
has(self.l[0])
has(self.missing)
has('x')
!has(self.o.y) || self.o.y == 'a'
self.l.all(x, x.startsWith('a'))
self.l.all(x, x > 1)
self.l.all(x, 1)
self.l.all(x.y, true)
self.l.all(1, true)
self.l.exists(x, x == 'a')
self.l.exists_one(x, x == 'a')
self.l.map(x, x + 'a') == ['aa']
self.l.map(x, x == 'a', x + 'a') == ['aa']
self.l.filter(x, x == 'a').size() == 1
self.l.filter(x, 1).size() == 1
self.i.all(x, true)
self.m.all(k, k == 'a')
self.m.all(k, self.m[k] > 0)
self.m.all(k, v, v > 0)
self.m.exists(k, v, v > 0)
self.m.transformList(k, v, v + 1) == [1]
self.m.transformMap(k, v, v + 1) == {'a': 1}
self.m.transformMapEntry(k, v, {k: v}) == {'a': 1}
self.l.transformList(i, v, v) == ['a']
self.l.existsOne(i, v, v == 'a')
self.lm.all(x, x.v > 0)
self.lm.exists(x, x.k == 'a' && x.v == 1)
self.lm.all(x, x.z > 0)
self.lm == self.lm
self.set == ['b', 'a']
self.set + ['z'] == ['a', 'b', 'z']
self.dt > timestamp('2020-01-01T00:00:00Z')
self.dt > '2020'
self.dt.getFullYear() == 2020
self.dt.getFullYear('Europe/Berlin') == 2020
self.dt.getFullYear('Nowhere') == 2020
self.dt - self.dt == duration('0s')
self.dt + self.du > self.dt
self.dt + 1 > self.dt
self.du > duration('1s')
self.du > duration('x')
self.du.getSeconds() > 5
self.du == '1s'
self.day == timestamp('2020-01-01T00:00:00Z')
timestamp('x') == self.dt
timestamp(self.s) == self.dt
timestamp(5) == self.dt
duration(self.s) == self.du
self.by == b'a'
self.by == 'a'
size(self.by) == 1
string(self.by) == 'a'
bytes(self.s) == self.by
self.ios == 1
self.ios == '1'
type(self.ios) == int ? self.ios < 5 : self.ios == '5%'
type(self.ios) == string
type(self.i) == int
type(self.i) == type(1)
type(self.n) == double
self.ios + 1 > 1
self.nul == null
self.s == null
self.i == null
has(self.nul) && self.nul == 'a'
self.any.x == 1
self.any == {}
has(self.any.x)
self.e == 'C'
self.e == 'A'
self.e in ['A']
dyn(self.i) == 'x'
dyn(self.i).foo == 1
dyn(self.s) + 1 == 2
int(self.s) == 1
int(self.n) == 1
int('x') == 1
int(self.b) == 1
uint(self.i) == 1u
uint(-1) == 1u
self.i == 1u
double(self.s) == 1.0
double(self.i) == 1.0
string(self.i) == '1'
string(self.l) == '1'
bool(self.s)
bool('x')
self.s.find('a') == 'a'
self.s.findAll('a') == ['a']
self.s.findAll('a', 1) == ['a']
self.s.charAt(0) == 'a'
self.s.charAt(99) == 'a'
self.s.indexOf('a') == 0
self.s.indexOf('a', 99) == 0
self.s.lastIndexOf('a') == 0
self.s.lowerAscii() == 'a'
self.s.upperAscii() == 'A'
self.s.replace('a', 'b') == 'b'
self.s.replace('a', 'b', 1) == 'b'
self.s.replace('a') == 'b'
self.s.split(',') == ['a']
self.s.split(',', 1) == ['a']
self.s.substring(1) == ''
self.s.substring(5) == ''
self.s.substring(2, 1) == ''
self.s.trim() == 'a'
self.s.reverse() == 'a'
self.s.format([1]) == 'a'
'%d'.format([self.i]) == '1'
'%s %d %f %x %o %b %e'.format(['a', 1, 1.5, 255, 8, 2, 1000.0]) == 'x'
'%q'.format([self.i]) == '1'
'%d'.format(['x']) == '1'
'%d %d'.format([1]) == '1'
'%'.format([1]) == '1'
strings.quote(self.s) == '"a"'
self.l.join() == 'a'
self.l.join(',') == 'a'
self.li.join(',') == 'a'
self.l.sum() == 1
self.li.sum() == 1
self.li.min() == 1
self.li.max() == 1
self.l.min() == 'a'
[].min() == 1
self.l.isSorted()
self.li.isSorted()
self.lm.isSorted()
self.l.indexOf('a') == 0
self.l.lastIndexOf('z') == -1
self.l.indexOf(1) == 0
self.l.sort() == ['a']
self.l.distinct() == ['a']
self.l.slice(0, 1) == ['a']
self.l.slice(0, 9) == ['a']
self.l.flatten() == ['a']
self.l.reverse() == ['a']
self.l.first() == 'a'
lists.range(3) == [0, 1, 2]
math.greatest(1, self.i) == 1
math.least([1, self.i]) == 1
math.greatest('x') == 1
math.abs(self.i) == 1
math.ceil(self.n) == 1.0
math.bitAnd(1, self.i) == 1
math.isNaN(self.n)
sets.contains(self.l, ['a'])
sets.contains(self.l, [1])
sets.equivalent(self.l, ['a'])
sets.intersects(self.l, self.li)
sets.union(self.l, ['a']) == ['a']
url(self.s).getHost() == 'a'
url('https://a.b:80/c?d=e').getHostname() == 'a.b'
url('https://a.b/c').getQuery() == {}
url(1).getHost() == 'a'
isURL(self.s)
isURL('https://a.b')
ip(self.s).family() == 4
ip('1.2.3.4').family() == 4
ip('1.2.3.4').isLoopback()
ip('x').family() == 4
isIP(self.s)
ip.isCanonical(self.s)
cidr('10.0.0.0/8').containsIP('10.1.1.1')
cidr('10.0.0.0/8').containsIP(ip('10.1.1.1'))
cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')
cidr('10.0.0.0/8').prefixLength() == 8
cidr('10.0.0.1/8').masked() == cidr('10.0.0.0/8')
cidr(self.s).ip() == ip('10.0.0.0')
isCIDR(self.s)
quantity(self.s).isGreaterThan(quantity('1Gi'))
quantity('1Gi') == quantity('1024Mi')
quantity('1').add(1) == quantity('2')
quantity('1').sub(quantity('0.5')).asApproximateFloat() == 0.5
quantity('1.5').asInteger() == 1
quantity('1').compareTo(quantity('2')) == -1
quantity('1') > quantity('2')
quantity('x').sign() == 1
isQuantity(self.s)
isQuantity(1)
semver('1.2.3').isLessThan(semver('2.0.0'))
semver('v1.2', true).major() == 1
semver(self.s).minor() == 1
isSemver('1.2.3')
isSemver('v1.2', true)
format.dns1123Label().validate(self.s) == optional.none()
format.named('dns1123Label').hasValue()
!format.dns1123Label().validate(self.s).hasValue()
format.nope().validate(self.s)
optional.of(1).value() == 1
optional.none().hasValue()
optional.none().value() == 1
optional.ofNonZeroValue('').orValue('x') == 'x'
self.?s.orValue('x') == 'a'
self.?nul.hasValue()
self.?missing.orValue('x') == 'a'
self.o.?y.orValue('') == 'a'
self.m[?'a'].orValue(0) == 1
self.l[?9].orValue('z') == 'z'
[?self.?s] == ['a']
{?'a': self.?s} == {'a': 'b'}
{'a': 1, 'a': 2} == {'a': 1}
{1: 'a', 'b': 2} == {}
[1, 'a'] == []
authorizer.path('/').check('get').allowed()
oldSelf.s == self.s
oldSelf == self
self.s == oldSelf.s
oldSelf.missing == 1
object.s == 'a'
request.userInfo.username == 'a'
params.x == 1
variables.x == 1
namespaceObject.metadata.name == 'a'
Pod{}
Object{s: 'a'} == self
google.protobuf.Struct{} == self
jsonpatch.escapeKey('a/b') == 'a~1b'
cel.bind(x, self.s, x == 'a')
self.s == "unterminated
self.s == 'a' &&
self.s = 'a'
self..s
self.s == 'a' 'b'
(self.s == 'a'
self.s == 'a')
self.s == r'\\d'
self.s == '\\d'
self.s == '\\u00e9'
self.s == '''a
b'''
self.i == 0x1F
self.i == 9223372036854775808
self.i == -9223372036854775808
self.i == 1e3
self.n == .5
self.s === 'a'
self.s <> 'a'
self.s & self.t
for (x in self.l) true
if (true) { false }
return true
null
self == null
[1].all(x, x == 1)
self.ull.all(a, a.all(b, self.ull.all(c, c.all(d, b == d))))
self.ul.all(a, self.ul.all(b, a == b))
self.ul.all(a, self.ul.all(b, self.ul.all(c, a == b && b == c)))
self.um.all(a, self.um.all(b, self.um[a] == self.um[b]))
self.unlimited.contains(self.unlimited)
self.unlimited.matches('(a+)+')
self.unlimited + self.unlimited == self.unlimited
self.unlimited.split(',').all(x, self.unlimited.split(',').all(y, x == y))
self.ul.map(x, x + x).all(x, self.ul.exists(y, x == y))
self.ul.isSorted() && self.ul.join(',').find('a') == 'a'
sets.contains(self.ul, self.ul)
self.ul.sort() == self.ul
self.ull.all(x, x.all(y, y.matches('a.*b')))
quantity(self.unlimited).isGreaterThan(quantity('1'))
self.ul.all(x, isURL(x) && url(x).getHost() == 'a')
self.ul.all(x, ip(x).family() == 4)
self.ul.all(x, format.dns1123Subdomain().validate(x).hasValue())
self.ul.all(x, semver(x).isLessThan(semver('1.0.0')))
self.unlimited.replace('a', 'b').lowerAscii().reverse() == 'x'
"""

MESSAGES = """
'too small: ' + string(self.i)
self.s
self.i
'a' + 1
''
' '
'a\\nb'
self.missing
self.l[9]
'x' + oldSelf.s
self.unlimited + self.unlimited
1
"""

# What the rules that compile are asked about.
OBJECTS = [
    {"s": "a", "t": "b", "i": 1, "j": 1, "n": 1.5, "b": True, "dt": "2020-01-01T00:00:00Z", "day": "2020-01-01",
    "du": "1s", "by": "YQ==",
    "ios": 1, "nul": None, "any": {"x": 1}, "e": "A", "l": ["a"], "li": [1], "set": ["a", "b"], "lm": [{"k": "a",
    "v": 1}],
    "m": {"a": 1}, "ms": {"a": "b"}, "o": {"x": 1, "y": "a", "in": 1, "a-b": 1, "a.b": 1, "__x__": 1, "namespace": 1,
    "a_b": 1},
    "unlimited": "a", "ul": ["a", "b"], "um": {"a": "b"}, "ull": [["a"]]},
    {"s": "10.0.0.0/8", "i": -3, "n": 2, "l": [], "m": {}, "o": {}, "ios": "5%", "any": {}},
]


def rules():
    """One rule per line; a line that begins inside ''' belongs to the line before."""
    found = []
    for line in RULES.strip("\n").split("\n"):
        if found and found[-1].count("'''") == 1:
            found[-1] += "\n" + line.replace("\\\\", "\\")
        else:
            found.append(line.replace("\\\\", "\\"))
    return found


def messages():
    return [line.replace("\\\\", "\\") for line in MESSAGES.strip("\n").split("\n")]
