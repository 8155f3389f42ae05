#!/usr/bin/env python3
"""Writes src/openapi/messages.txt: the protobuf form of OpenAPI documents, compactly.

usage: openapi_protobuf.py OpenAPIv2.proto OpenAPIv3.proto > src/openapi/messages.txt
(of github.com/google/gnostic-models)

One line per message: its name, `|` if it is one of several things, and its fields, each `number:json name:type`. Types:
s string, b bool, i integer, f float, or a message's name; `*` before it marks a repeated one.
"""
import re, sys

SCALARS = {"string": "s", "bool": "b", "int64": "i", "double": "f"}


def camel(name):
    if name == "_ref":
        return "$ref"
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


for version, path in (("v2", sys.argv[1]), ("v3", sys.argv[2])):
    message, fields, one = None, [], False
    for line in open(path):
        if m := re.match(r"message (\w+) {", line):
            message, fields, one = m[1], [], False
        elif line.startswith("}"):
            print(" ".join([version + "." + message] + (["|"] if one else []) + fields))
        elif re.match(r"\s+oneof", line):
            one = True
        elif m := re.match(r"\s+(repeated |)([\w.]+) (\w+) = (\d+);", line):
            if m[2].startswith("google."):
                continue
            kind = SCALARS.get(m[2]) or version + "." + m[2]
            fields.append("%s:%s:%s%s" % (m[4], camel(m[3]), "*" if m[1] else "", kind))
