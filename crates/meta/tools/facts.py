#!/usr/bin/env python3
"""Writes src/facts.txt from upstream's OpenAPI document: python3 facts.py openapi-v2.json > ../src/facts.txt

One line per type or field: type, field (or -), facts. Types of io.k8s.api are written without that prefix.
`zero={}`/`zero=null` (Go encodes the field even when empty: a struct, a time) and `default` cannot be read
from the document; they are listed here.
"""
import json
import sys

VALUE = {  # struct fields that are not pointers in Go, beside metadata, spec and status of kinds
    "apps.v1.DaemonSetSpec": "updateStrategy", "apps.v1.DeploymentSpec": "strategy",
    "apps.v1.StatefulSetSpec": "updateStrategy", "apps.v1.ReplicaSetSpec": "template",
    "batch.v1.JobTemplateSpec": "metadata spec", "core.v1.PodTemplateSpec": "metadata spec",
    "core.v1.PodTemplate": "template", "core.v1.PersistentVolumeClaimTemplate": "metadata",
    "resource.v1.ResourceClaimTemplateSpec": "metadata", "authentication.v1.TokenReviewStatus": "user",
    "authentication.v1.SelfSubjectReviewStatus": "userInfo", "core.v1.Container": "resources",
    "core.v1.EphemeralContainer": "resources", "core.v1.ContainerStatus": "state lastState",
    "core.v1.Event": "source", "events.v1.Event": "regarding deprecatedSource",
    "core.v1.NodeDaemonEndpoints": "kubeletEndpoint", "core.v1.NodeStatus": "daemonEndpoints nodeInfo",
    "core.v1.PersistentVolumeClaimSpec": "resources", "core.v1.ServiceStatus": "loadBalancer",
    "networking.v1.IngressStatus": "loadBalancer", "discovery.v1.Endpoint": "conditions",
    "networking.v1.NetworkPolicySpec": "podSelector", "networking.v1.IngressServiceBackend": "port",
    "resource.v1.ResourceClaimSpec": "devices",
    "flowcontrol.v1.LimitedPriorityLevelConfiguration": "limitResponse",
}
TIME = {  # time fields that are not pointers: encoded as null when unset
    "core.v1.Event": "eventTime firstTimestamp lastTimestamp",
    "events.v1.Event": "deprecatedFirstTimestamp deprecatedLastTimestamp",
    "batch.v1.JobCondition": "lastProbeTime lastTransitionTime",
    "certificates.v1.CertificateSigningRequestCondition": "lastUpdateTime lastTransitionTime",
    "core.v1.ContainerStateRunning": "startedAt", "core.v1.ContainerStateTerminated": "startedAt finishedAt",
    "core.v1.NamespaceCondition": "lastTransitionTime", "core.v1.PodCondition": "lastProbeTime lastTransitionTime",
    "core.v1.NodeCondition": "lastHeartbeatTime lastTransitionTime",
    "core.v1.PersistentVolumeClaimCondition": "lastProbeTime lastTransitionTime",
    "core.v1.ReplicationControllerCondition": "lastTransitionTime",
    "apps.v1.DeploymentCondition": "lastUpdateTime lastTransitionTime",
    "apps.v1.ReplicaSetCondition": "lastTransitionTime", "apps.v1.StatefulSetCondition": "lastTransitionTime",
    "apps.v1.DaemonSetCondition": "lastTransitionTime", "flowcontrol.v1.FlowSchemaCondition": "lastTransitionTime",
    "flowcontrol.v1.PriorityLevelConfigurationCondition": "lastTransitionTime",
    "autoscaling.v2.HorizontalPodAutoscalerCondition": "lastTransitionTime",
}
DEFAULT = {("core.v1.ContainerPort", "protocol"): '"TCP"', ("core.v1.ServicePort", "protocol"): '"TCP"',
           ("core.v1.ResourceFieldSelector", "divisor"): None}

definitions = json.load(open(sys.argv[1]))["definitions"]
for full in sorted(definitions):
    name = full.removeprefix("io.k8s.api.")
    schema = definitions[full]
    kind = bool(schema.get("x-kubernetes-group-version-kind"))
    if schema.get("x-kubernetes-map-type"):
        print(name, "-", "map=" + schema["x-kubernetes-map-type"])
    for field, prop in sorted(schema.get("properties", {}).items()):
        facts = []
        for key, short in (("map-type", "map"), ("list-type", "list"), ("list-map-keys", "keys"),
                           ("patch-merge-key", "merge"), ("patch-strategy", "strategy")):
            value = prop.get("x-kubernetes-" + key)
            if value:
                facts.append(f"{short}={','.join(value) if isinstance(value, list) else value}")
        ref = "$ref" in prop
        if ref and (field in VALUE.get(name, "").split() or kind and field in ("metadata", "spec", "status")):
            facts.append("zero={}")
        if field in TIME.get(name, "").split():
            facts.append("zero=null")
        if DEFAULT.get((name, field)):
            facts.append("default=" + DEFAULT[name, field])
        if facts:
            print(name, field, *facts)
