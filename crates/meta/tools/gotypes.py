#!/usr/bin/env python3
"""Writes src/go/types.txt from a checkout of Kubernetes:

    python3 gotypes.py path/to/kubernetes/staging/src/k8s.io > ../src/go/types.txt

One line per Go type of the API, `package.Name definition`. The definition of a struct is `{` and its JSON fields:
`name[@Embedded]:[?][*]type`, where `@` names the embedded struct that has the field, `?` is `omitempty` or
`omitzero` and `*` a pointer. Types of the same package are written without it. Types that decode themselves
(Quantity, Time, IntOrString ...) have the definition `!`. Behind `=` stand the values of an enumeration.
"""
import glob
import re
import sys

ROOT = sys.argv[1]
PACKAGES = {  # import path below k8s.io: package name here
    "apimachinery/pkg/apis/meta/v1": "meta/v1", "apimachinery/pkg/api/resource": "resource",
    "apimachinery/pkg/util/intstr": "intstr", "apimachinery/pkg/runtime": "runtime",
    "apimachinery/pkg/types": "types", "apiextensions-apiserver/pkg/apis/apiextensions/v1": "apiextensions/v1",
    "kube-aggregator/pkg/apis/apiregistration/v1": "apiregistration/v1",
    "apimachinery/pkg/version": "version",
}
for path in glob.glob(ROOT + "/api/*/v*/types*.go"):
    directory = "/".join(path.split("/")[-4:-1])
    PACKAGES[directory] = "/".join(directory.split("/")[1:])
OPAQUE = {"resource.Quantity", "intstr.IntOrString", "meta/v1.Time", "meta/v1.MicroTime", "meta/v1.Duration",
          "meta/v1.FieldsV1", "runtime.RawExtension", "apiextensions/v1.JSON", "apiextensions/v1.JSONSchemaPropsOrBool",
          "apiextensions/v1.JSONSchemaPropsOrArray", "apiextensions/v1.JSONSchemaPropsOrStringArray", "meta/v1.Verbs"}
BASIC = {"string", "bool", "int", "int32", "int64", "uint64", "uint32", "uint16", "float64", "byte", "any", "interface{}"}
types, structs, enums, constants, others, by_name = {}, {}, {}, {}, {}, {}


def expand(expr, package, imports):
    """A type expression with full package names."""
    expr = expr.strip()
    for prefix in ("*", "[]"):
        if expr.startswith(prefix):
            return prefix + expand(expr[len(prefix):], package, imports)
    held = re.match(r"map\[([^\]]+)\](.*)", expr)
    if held:
        return f"map[{expand(held[1], package, imports)}]{expand(held[2], package, imports)}"
    if expr in BASIC:
        return expr
    if "." in expr:
        alias, name = expr.split(".")
        return imports.get(alias, alias) + "." + name
    return package + "." + expr


def read(path, package):
    text = open(path).read()
    imports = {}
    for alias, target in re.findall(r'^\s*(?:import )?(\w+)?\s*"k8s.io/([^"]+)"', text, re.M):
        imports[alias or target.split("/")[-1]] = PACKAGES.get(target, target)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    for comment, name, definition in re.findall(r"((?:^//[^\n]*\n)*)^type (\w+) ([^\s{=][^{\n]*)$", text, re.M):
        types[f"{package}.{name}"] = expand(definition.split("//")[0], package, imports)
        if re.search(r"^// ?\+enum", comment, re.M):
            enums.setdefault(f"{package}.{name}", set())
    for constant, name, value in re.findall(r'^\s*(?:const )?(\w+)\s+(\w+)\s*=\s*"([^"]*)"', text, re.M):
        constants.setdefault(f"{package}.{name}", set()).add(value)
        by_name[constant] = value
    for name, value in re.findall(r'^\s*(?:const )?\w+\s*=\s*(\w+)\("([^"]*)"\)', text, re.M):
        constants.setdefault(f"{package}.{name}", set()).add(value)
    for name, constant in re.findall(r'^\s*(?:const )?\w+\s*=\s*(\w+)\((?:\w+\.)?(\w+)\)', text, re.M):
        others.setdefault(f"{package}.{name}", set()).add(constant)
    for name in re.findall(r"^type (\w+) struct ?\{\s*\}", text, re.M):
        structs[f"{package}.{name}"] = []
    for name, body in re.findall(r"^type (\w+) struct \{\n(.*?)^\}", text, re.M | re.S):
        fields = []
        for line in body.splitlines():
            line = line.strip()
            tag = re.search(r'`.*?json:"([^"]*)".*`', line)
            if line.startswith("//") or not tag:
                continue
            words = line[:line.index("`")].split()
            name_, *options = tag[1].split(",")
            if name_ == "-":
                continue
            go = expand(words[-1], package, imports)
            # An embedded struct without a name of its own lends its fields.
            inline = len(words) == 1 and not name_
            fields.append((name_, go, inline, "omitempty" in options or "omitzero" in options))
        structs[f"{package}.{name}"] = fields


for directory, package in PACKAGES.items():
    for path in sorted(glob.glob(f"{ROOT}/{directory}/*.go")):
        if not re.search(r"(_test|zz_generated.*|generated\.pb|register)\.go$", path):
            read(path, package)


def fields_of(name, via=""):
    for field, go, inline, omit in structs.get(name, []):
        if inline:
            bare = go.lstrip("*")
            yield from fields_of(bare, f"{via}@{bare.split('.')[-1]}")
        else:
            yield field, via, go, omit


def local(go, package):
    return re.sub(r"(?<![\w/.])" + re.escape(package) + r"\.(?=\w+)", "", go)


SERVED = re.compile(r"/v\d+\.")
wanted, done = [n for n in structs if n == "version.Info" or SERVED.search(n) and any(f[1].endswith("meta/v1.TypeMeta") and f[2] for f in structs[n])], set()
while wanted:
    name = wanted.pop()
    if name in done:
        continue
    done.add(name)
    if name in OPAQUE or name in types:
        wanted += re.findall(r"[\w/]+\.\w+", types.get(name, ""))
        continue
    for _, _, go, _ in fields_of(name):
        wanted += re.findall(r"[\w/]+\.\w+", go)
for name in sorted(done):
    package = name.rsplit(".", 1)[0]
    if name in OPAQUE:
        print(name, "!")
    elif name in types:
        values = set(constants.get(name, ())) | {by_name[c] for c in others.get(name, ()) if c in by_name}
        values = sorted(values) if name in enums else []
        print(name, local(types[name], package) + ("=" + ",".join(values) if values else ""))
    elif name in structs:
        parts = [f"{field}{via}:{'?' if omit else ''}{local(go, package)}" for field, via, go, omit in fields_of(name)]
        print(name, "{" + " ".join(parts))
    else:
        print("unknown", name, file=sys.stderr)
