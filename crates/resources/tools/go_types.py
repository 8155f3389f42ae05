#!/usr/bin/env python3
"""Writes src/go_types.txt: the order and the kinds of the fields of upstream's internal types.

Upstream shows whole structures in some messages, printed as JSON by the field names of its internal Go
types.  Usage: go_types.py <kubernetes source tree> > src/go_types.txt
"""

import re
import sys

PACKAGES = {
    "core": "pkg/apis/core/types.go",
    "batch": "pkg/apis/batch/types.go",
    "apps": "pkg/apis/apps/types.go",
    "policy": "pkg/apis/policy/types.go",
    "autoscaling": "pkg/apis/autoscaling/types.go",
    "networking": "pkg/apis/networking/types.go",
    "metav1": "staging/src/k8s.io/apimachinery/pkg/apis/meta/v1/types.go",
}
# What messages show; everything they refer to comes along.
ROOTS = [
    "core.PodTemplateSpec", "core.ObjectReference", "core.EventSource", "core.VolumeNodeAffinity",
    "core.PersistentVolumeSource", "core.PersistentVolumeClaimSpec", "core.ResourceQuotaSpec",
    "core.ScopeSelector", "core.LimitRangeItem",
    "batch.PodFailurePolicy", "batch.SuccessPolicy", "batch.UncountedTerminatedPods", "autoscaling.HorizontalPodAutoscalerBehavior", "policy.PodDisruptionBudgetSpec",
    "apps.DaemonSetUpdateStrategy", "apps.StatefulSetUpdateStrategy", "apps.DeploymentStrategy",
    "metav1.LabelSelector",
]
SCALARS = {"string": "s", "bool": "b", "int": "n", "int32": "n", "int64": "n", "uint64": "n", "float64": "n",
           "byte": "n"}
OPAQUE = {"metav1.Time": "t", "metav1.MicroTime": "t", "metav1.FieldsV1": "t",
          "metav1.ObjectMeta": "m", "intstr.IntOrString": "i", "resource.Quantity": "q",
          "types.UID": "s", "types.NodeName": "s", "types.NamespacedName": "s", "runtime.Object": "t"}


def parse(root):
    structs, aliases = {}, {}
    for package, path in PACKAGES.items():
        text = open(f"{root}/{path}").read()
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
        text = re.sub(r"//[^\n]*", "", text)
        for name, body in re.findall(r"^type (\w+) struct \{\n(.*?)^\}", text, flags=re.S | re.M):
            structs[f"{package}.{name}"] = [l.strip() for l in body.split("\n") if l.strip()]
        for name, target in re.findall(r"^type (\w+) (?!struct|interface)([\w.\[\]*]+)$", text, flags=re.M):
            aliases[f"{package}.{name}"] = (package, target)
        block = re.findall(r"^type \(\n(.*?)^\)", text, flags=re.S | re.M)
        for body in block:
            for name, target in re.findall(r"^\s+(\w+) ([\w.\[\]*]+)$", body, flags=re.M):
                aliases[f"{package}.{name}"] = (package, target)
    return structs, aliases


def qualify(package, name):
    if name in SCALARS:
        return name
    if "." in name:
        prefix, rest = name.split(".", 1)
        return {"api": "core", "v1": "core", "corev1": "core"}.get(prefix, prefix) + "." + rest
    return f"{package}.{name}"


def shape(package, kind, structs, aliases, todo):
    """The code of a type: `*`, `[]` and `{}` (maps) in front of a scalar letter or a struct's name."""
    if kind.startswith("*"):
        return "*" + shape(package, kind[1:], structs, aliases, todo)
    if kind == "[]byte":
        return "*s"
    if kind.startswith("[]"):
        return "[]" + shape(package, kind[2:], structs, aliases, todo)
    found = re.match(r"map\[[\w.]+\](.*)", kind)
    if found:
        return "{}" + shape(package, found.group(1), structs, aliases, todo)
    if kind in SCALARS:
        return SCALARS[kind]
    full = qualify(package, kind)
    if full in OPAQUE:
        return OPAQUE[full]
    if full in aliases:
        owner, target = aliases[full]
        return shape(owner, target, structs, aliases, todo)
    if full not in structs:
        raise SystemExit(f"unknown type {full}")
    todo.append(full)
    return full


def main():
    structs, aliases = parse(sys.argv[1])
    todo, done = list(ROOTS), {}
    while todo:
        name = todo.pop()
        if name in done:
            continue
        package = name.split(".")[0]
        fields = []
        for line in structs[name]:
            found = re.match(r"(\w+)\s+([^\s`]+)\s*(?:`(.*)`)?$", line)
            if found:
                field, kind, tag = found.groups()
                code = shape(package, kind, structs, aliases, todo)
                json = re.search(r'json:"([^"]*)"', tag or "")
                if json:
                    parts = json.group(1).split(",")
                    field = parts[0] + ("?" if "omitempty" in parts[1:] else "")
                fields.append(f"{field}:{code}")
            else:
                embedded = re.match(r"([\w.]+)\s*(?:`.*`)?$", line).group(1)
                fields.append("+:" + shape(package, embedded, structs, aliases, todo))
        done[name] = fields
    for name in sorted(done):
        print(name, *done[name])


main()
