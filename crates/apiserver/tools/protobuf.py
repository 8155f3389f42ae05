#!/usr/bin/env python3
"""Writes src/protobuf/messages.txt: the protobuf form of the API types, compactly.

usage: protobuf.py API_GIT APIMACHINERY_GIT > src/protobuf/messages.txt
(two git directories of github.com/kubernetes/api and github.com/kubernetes/apimachinery)

One line per message: its name and its fields, each `number:json name:type`. Types: s string, b bool, i integer, f float,
y bytes, or a message's name. Marks before the type: `*` repeated, `%` map from string, `?` a Go pointer (its zero
value counts), `=` inlined into the message around it (no name).
"""
import re, subprocess, sys

API, MACHINERY = sys.argv[1:3]
PACKAGES = [(API, g + "/v1", g + ".v1") for g in (
    "core apps authentication authorization autoscaling batch certificates coordination discovery events "
    "networking node policy rbac scheduling storage").split()]
PACKAGES += [(API, "autoscaling/v2", "autoscaling.v2"),
             (MACHINERY, "pkg/apis/meta/v1", "meta.v1"), (MACHINERY, "pkg/runtime", "runtime"),
             (MACHINERY, "pkg/api/resource", "resource"), (MACHINERY, "pkg/util/intstr", "intstr")]
SCALARS = {"string": "s", "bool": "b", "int32": "i", "int64": "i", "uint32": "i", "uint64": "i", "sint32": "i",
           "double": "f", "bytes": "y"}


def show(repo, path):
    out = subprocess.run(["git", "-C", repo, "show", "HEAD:" + path], capture_output=True, text=True)
    return out.stdout


def go_facts(repo, path):
    """(struct, number) -> (json name, pointer, inline)"""
    facts = {}
    files = subprocess.run(["git", "-C", repo, "ls-tree", "--name-only", "HEAD", path + "/"], capture_output=True, text=True)
    for f in files.stdout.split():
        if not f.endswith(".go") or "generated" in f or "_test" in f or "zz_" in f:
            continue
        struct = None
        for line in show(repo, f).splitlines():
            m = re.match(r"type (\w+) struct {", line)
            if m:
                struct = m[1]
            m = re.match(r'\s+(\S+)?\s*(\S+)?\s*`.*json:"([^"]*)".*protobuf:"\w+,(\d+)', line)
            if m and struct:
                name, _, flags = m[3].partition(",")
                kind = m[2] or m[1] or ""
                facts[struct, int(m[4])] = (name, kind.startswith("*"), "inline" in flags or not name)
    return facts


def kind(text, package):
    text = text.lstrip(".")
    if text in SCALARS:
        return SCALARS[text]
    for long, short in (("k8s.io.apimachinery.pkg.apis.meta.v1.", "meta.v1."), ("k8s.io.apimachinery.pkg.runtime.", "runtime."),
                        ("k8s.io.apimachinery.pkg.api.resource.", "resource."), ("k8s.io.apimachinery.pkg.util.intstr.", "intstr.")):
        if text.startswith(long):
            return short + text[len(long):]
    if text.startswith("k8s.io.api."):
        return text[len("k8s.io.api."):]
    return package + "." + text


for repo, path, package in PACKAGES:
    facts = go_facts(repo, path)
    message = None
    for line in show(repo, path + "/generated.proto").splitlines():
        m = re.match(r"message (\w+) {", line)
        if m:
            message, fields = m[1], []
        elif message and line == "}":
            if not message.endswith("List"):
                print(" ".join([package + "." + message] + fields))
            message = None
        elif message:
            m = re.match(r"\s+(optional |repeated |)(map<string, ([\w.]+)>|[\w.]+) (\w+) = (\d+);", line)
            if not m:
                continue
            number = int(m[5])
            name, pointer, inline = facts.get((message, number), (m[4], False, False))
            if m[3]:
                mark, of = "%", m[3]
            else:
                mark, of = ("*" if m[1] == "repeated " else ""), m[2]
            if inline:
                fields.append("%d::=%s" % (number, kind(of, package)))
            else:
                fields.append("%d:%s:%s%s%s" % (number, name or m[4], "?" if pointer else "", mark, kind(of, package)))
