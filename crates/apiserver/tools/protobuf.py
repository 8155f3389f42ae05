#!/usr/bin/env python3
"""Writes src/protobuf/messages.txt: the protobuf form of the API types, compactly.

usage: protobuf.py GIT_DIR [PREFIX] > src/protobuf/messages.txt
(a git directory with kubernetes' staging tree of the version that is served, and where in it `k8s.io/` lies)

One line per message: its name and its fields, each `number:json name:type`. Types: s string, b bool, i integer, f float,
y bytes, or a message's name. Marks before the type: `*` repeated, `%` map from string, `?` a Go pointer (its zero
value counts), `=` inlined into the message around it (no name).
"""
import re, subprocess, sys

REPO = sys.argv[1]
PREFIX = sys.argv[2] if len(sys.argv) > 2 else "staging/src/k8s.io"
PACKAGES = [("api/" + g + "/v1", g + ".v1") for g in (
    "core admission admissionregistration apps authentication authorization autoscaling batch certificates coordination "
    "discovery events flowcontrol networking node policy rbac resource scheduling storage").split()]
PACKAGES += [("api/autoscaling/v2", "autoscaling.v2"), ("api/apidiscovery/v2", "apidiscovery.v2"),
             ("apiextensions-apiserver/pkg/apis/apiextensions/v1", "apiextensions.v1"),
             ("kube-aggregator/pkg/apis/apiregistration/v1", "apiregistration.v1"),
             ("apimachinery/pkg/apis/meta/v1", "meta.v1"), ("apimachinery/pkg/apis/meta/v1beta1", "meta.v1beta1"), ("apimachinery/pkg/runtime", "runtime"),
             ("apimachinery/pkg/api/resource", "resource"), ("apimachinery/pkg/util/intstr", "intstr")]
SCALARS = {"string": "s", "bool": "b", "int32": "i", "int64": "i", "uint32": "i", "uint64": "i", "sint32": "i",
           "double": "f", "bytes": "y"}


def git(*args):
    return subprocess.run(["git", "-C", REPO, *args], capture_output=True, text=True).stdout


def show(path):
    return git("show", "HEAD:" + path)


def go_facts(path):
    """(struct, number) -> (json name, pointer, inline)"""
    facts = {}
    for f in git("ls-tree", "--name-only", "HEAD", path + "/").split():
        if not f.endswith(".go") or "generated" in f or "_test" in f or "zz_" in f:
            continue
        struct = None
        for line in show(f).splitlines():
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
                        ("k8s.io.apimachinery.pkg.api.resource.", "resource."), ("k8s.io.apimachinery.pkg.util.intstr.", "intstr."),
                        ("k8s.io.apiextensions_apiserver.pkg.apis.apiextensions.", "apiextensions."),
                        ("k8s.io.kube_aggregator.pkg.apis.apiregistration.", "apiregistration.")):
        if text.startswith(long):
            return short + text[len(long):]
    if text.startswith("k8s.io.api."):
        return text[len("k8s.io.api."):]
    return package + "." + text


for path, package in PACKAGES:
    path = PREFIX + "/" + path
    facts = go_facts(path)
    message = None
    for line in show(path + "/generated.proto").splitlines():
        m = re.match(r"message (\w+) {", line)
        if m:
            message, fields = m[1], []
        elif message and line == "}":
            if not message.endswith("List") or package.startswith("meta."):
                print(" ".join([package + "." + message] + [f for _, f in sorted(fields)]))
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
                fields.append((number, "%d::=%s" % (number, kind(of, package))))
            else:
                mark = ("?" if pointer else "") + mark
                fields.append((number, "%d:%s:%s%s" % (number, name or m[4], mark, kind(of, package))))
