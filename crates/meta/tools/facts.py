#!/usr/bin/env python3
"""Writes src/facts.txt from upstream's OpenAPI document and a checkout of k8s.io/api:

    python3 facts.py openapi-v2.json path/to/api > ../src/facts.txt

One line per type or field: type, field (or -), facts. Types of io.k8s.api are written without that prefix.
`zero` (how Go encodes the field when it is empty, where that does not follow from `required`), `default` and what
the v3 document says otherwise (`shown`, `required`, `values`) cannot be read from the document; they are listed here.
"""
import glob
import json
import re
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
    "resource.v1.ResourceClaimSpec": "devices", "resource.v1.AllocationResult": "devices",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionStatus": "acceptedNames",
    "flowcontrol.v1.LimitedPriorityLevelConfiguration": "limitResponse",
}
SCALAR = {  # optional scalars that Go writes even when empty
    "apps.v1.StatefulSetSpec": "serviceName", "apps.v1.StatefulSetStatus": "availableReplicas",
    "core.v1.Event": "reportingComponent reportingInstance", "core.v1.GRPCAction": "service",
    "policy.v1.PodDisruptionBudgetStatus": "currentHealthy desiredHealthy disruptionsAllowed expectedPods",
    "scheduling.v1.PriorityClass": "value", "rbac.v1.RoleRef": "apiGroup",
}
OMIT = {  # required, but left out when empty
    "admissionregistration.v1.ValidatingAdmissionPolicyBindingSpec": "validationActions policyName",
    "networking.v1.IPAddressSpec": "parentRef",
}
NULL = {  # times and lists encoded as null when unset
    "discovery.v1.EndpointSlice": "ports", "rbac.v1.Role": "rules", "rbac.v1.ClusterRole": "rules",
    "core.v1.TypedLocalObjectReference": "apiGroup", "core.v1.TypedObjectReference": "apiGroup",
    "core.v1.ProjectedVolumeSource": "sources", "resource.v1.DeviceClaim": "requests",
    "autoscaling.v2.HorizontalPodAutoscalerStatus": "currentMetrics",
    "flowcontrol.v1.ResourcePolicyRule": "namespaces", "storage.v1.CSINodeDriver": "topologyKeys",
    "authentication.v1.TokenRequestSpec": "boundObjectRef",
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
           ("core.v1.LocalObjectReference", "name"): '""'}
SHOWN = {  # defaults that the v3 document states against the rule (zero of what Go always writes), as JSON
    ("admissionregistration.v1.MutatingWebhook", "sideEffects"): 'none',
    ("admissionregistration.v1.ValidatingWebhook", "sideEffects"): 'none',
    ("autoscaling.v1.ScaleSpec", "replicas"): '0',
    ("certificates.v1.CertificateSigningRequest", "metadata"): '{}',
    ("certificates.v1.CertificateSigningRequestSpec", "request"): 'none',
    ("core.v1.AzureDiskVolumeSource", "cachingMode"): '"ReadWrite"',
    ("core.v1.AzureDiskVolumeSource", "fsType"): '"ext4"',
    ("core.v1.AzureDiskVolumeSource", "kind"): '"Shared"',
    ("core.v1.AzureDiskVolumeSource", "readOnly"): 'false',
    ("core.v1.ConfigMapEnvSource", "name"): '""',
    ("core.v1.ConfigMapKeySelector", "name"): '""',
    ("core.v1.ConfigMapProjection", "name"): '""',
    ("core.v1.ConfigMapVolumeSource", "name"): '""',
    ("core.v1.FileKeySelector", "optional"): 'false',
    ("core.v1.HTTPGetAction", "port"): 'none',
    ("core.v1.ISCSIPersistentVolumeSource", "iscsiInterface"): '"default"',
    ("core.v1.ISCSIVolumeSource", "iscsiInterface"): '"default"',
    ("core.v1.RBDPersistentVolumeSource", "keyring"): '"/etc/ceph/keyring"',
    ("core.v1.RBDPersistentVolumeSource", "pool"): '"rbd"',
    ("core.v1.RBDPersistentVolumeSource", "user"): '"admin"',
    ("core.v1.RBDVolumeSource", "keyring"): '"/etc/ceph/keyring"',
    ("core.v1.RBDVolumeSource", "pool"): '"rbd"',
    ("core.v1.RBDVolumeSource", "user"): '"admin"',
    ("core.v1.ReplicationControllerSpec", "minReadySeconds"): '0',
    ("core.v1.ReplicationControllerSpec", "replicas"): '1',
    ("core.v1.ScaleIOPersistentVolumeSource", "fsType"): '"xfs"',
    ("core.v1.ScaleIOPersistentVolumeSource", "storageMode"): '"ThinProvisioned"',
    ("core.v1.ScaleIOVolumeSource", "fsType"): '"xfs"',
    ("core.v1.ScaleIOVolumeSource", "storageMode"): '"ThinProvisioned"',
    ("core.v1.SecretEnvSource", "name"): '""',
    ("core.v1.SecretKeySelector", "name"): '""',
    ("core.v1.SecretProjection", "name"): '""',
    ("core.v1.TCPSocketAction", "port"): 'none',
    ("networking.v1.HTTPIngressPath", "pathType"): 'none',
    ("resource.v1.Counter", "value"): 'none',
    ("resource.v1.DeviceCapacity", "value"): 'none',
    ("resource.v1.DeviceToleration", "operator"): '"Equal"',
}
REQUIRED = {  # where the types crate and the document differ
    ("core.v1.ConfigMapEnvSource", "name"): "no",
    ("core.v1.ConfigMapKeySelector", "name"): "no",
    ("core.v1.ConfigMapProjection", "name"): "no",
    ("core.v1.ConfigMapVolumeSource", "name"): "no",
    ("core.v1.SecretEnvSource", "name"): "no",
    ("core.v1.SecretKeySelector", "name"): "no",
    ("core.v1.SecretProjection", "name"): "no",
    ("core.v1.LocalObjectReference", "name"): "no",
    ("core.v1.Event", "metadata"): "yes",
    ("events.v1.Event", "eventTime"): "yes",
}
VALUES = {  # of maps
    ("core.v1.PersistentVolumeClaimStatus", "allocatedResourceStatuses"):
        "ControllerResizeInProgress,ControllerResizeInfeasible,NodeResizeInProgress,NodeResizeInfeasible,NodeResizePending",
}



def omitted_scalars(checkout):
    """Fields that are no pointers in Go and have `omitempty`: (group.version.Type, field)."""
    out = set()
    for path in glob.glob(checkout + "/*/v*/types*.go"):
        group, version = path.split("/")[-3:-1]
        struct = None
        for line in open(path):
            start = re.match(r"type (\w+) struct {", line)
            if start:
                struct = start.group(1)
            elif line.startswith("}"):
                struct = None
            field = struct and re.match(r'\s+\w+\s+([^\s`]+)\s+`json:"(\w+),omitempty"', line)
            if field and not field.group(1).startswith("*"):
                out.add((f"{group}.{version}.{struct}", field.group(2)))
    return out


omitted = omitted_scalars(sys.argv[2])
definitions = json.load(open(sys.argv[1]))["definitions"]
for full in sorted(definitions):
    name = full.removeprefix("io.k8s.api.")
    schema = definitions[full]
    kind = bool(schema.get("x-kubernetes-group-version-kind"))
    whole = []
    if schema.get("x-kubernetes-map-type"):
        whole.append("map=" + schema["x-kubernetes-map-type"])
    if schema.get("x-kubernetes-unions"):
        whole.append("unions=" + json.dumps(schema["x-kubernetes-unions"], separators=(",", ":")))
    if whole:
        print(name, "-", *whole)
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
        if field in SCALAR.get(name, "").split():
            facts.append("zero={}")
        if field in NULL.get(name, "").split():
            facts.append("zero=null")
        if prop.get("type") in ("string", "integer", "boolean", "number") and (name, field) in omitted:
            facts.append("zero=drop")
        if field in OMIT.get(name, "").split():
            facts.append("zero=omit")
        if DEFAULT.get((name, field)):
            facts.append("default=" + DEFAULT[name, field])
        for word, table in (("shown", SHOWN), ("required", REQUIRED), ("values", VALUES)):
            if table.get((name, field)):
                facts.append(f"{word}={table[name, field]}")
        if facts:
            print(name, field, *facts)
