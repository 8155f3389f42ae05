//! CSIDriver: what a CSI volume driver can do and wants.

use std::collections::BTreeSet;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec, TokenRequest};
use serde_json::{Value, json};

use crate::check::one_of;
use crate::common::{column, or_else};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Scope, Strategy, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "AttachRequired",
        "boolean",
        "",
        "attachRequired indicates this CSI volume driver requires an attach operation (because it \
         implements the CSI ControllerPublishVolume() method), and that the Kubernetes attach detach \
         controller should call the attach volume interface which checks the volumeattachment status \
         and waits until the volume is attached before proceeding to mounting. The CSI \
         external-attacher coordinates with CSI volume driver and updates the volumeattachment status \
         when the attach operation is complete. If the value is specified to false, the attach \
         operation will be skipped. Otherwise the attach operation will be called.\n\nThis field is \
         immutable.",
    ),
    column(
        "PodInfoOnMount",
        "boolean",
        "",
        "podInfoOnMount indicates this CSI volume driver requires additional pod information (like \
         podName, podUID, etc.) during mount operations, if set to true. If set to false, pod \
         information will not be passed on mount. Default is false.\n\nThe CSI driver specifies \
         podInfoOnMount as part of driver deployment. If true, Kubelet will pass pod information as \
         VolumeContext in the CSI NodePublishVolume() calls. The CSI driver is responsible for \
         parsing and validating the information passed in as VolumeContext.\n\nThe following \
         VolumeContext will be passed if podInfoOnMount is set to true. This list might grow, but the \
         prefix will be used. \"csi.storage.k8s.io/pod.name\": pod.Name \
         \"csi.storage.k8s.io/pod.namespace\": pod.Namespace \"csi.storage.k8s.io/pod.uid\": \
         string(pod.UID) \"csi.storage.k8s.io/ephemeral\": \"true\" if the volume is an ephemeral \
         inline volume\n                                defined by a CSIVolumeSource, otherwise \
         \"false\"\n\n\"csi.storage.k8s.io/ephemeral\" is a new feature in Kubernetes 1.16. It is \
         only required for drivers which support both the \"Persistent\" and \"Ephemeral\" \
         VolumeLifecycleMode. Other drivers can leave pod info disabled and/or ignore this field. As \
         Kubernetes 1.15 doesn't support this field, drivers can only support one mode when deployed \
         on such a cluster and the deployment determines which mode that is, for example via a \
         command line parameter of the driver.\n\nThis field was immutable in Kubernetes < 1.29 and \
         now is mutable.",
    ),
    column(
        "StorageCapacity",
        "boolean",
        "",
        "storageCapacity indicates that the CSI volume driver wants pod scheduling to consider the \
         storage capacity that the driver deployment will report by creating CSIStorageCapacity \
         objects with capacity information, if set to true.\n\nThe check can be enabled immediately \
         when deploying a driver. In that case, provisioning new volumes with late binding will pause \
         until the driver deployment has published some suitable CSIStorageCapacity \
         object.\n\nAlternatively, the driver can be deployed with the field unset or false and it \
         can be flipped later when storage capacity information has been published.\n\nThis field was \
         immutable in Kubernetes <= 1.22 and now is mutable.",
    ),
    column(
        "TokenRequests",
        "string",
        "",
        "tokenRequests indicates the CSI driver needs pods' service account tokens it is mounting \
         volume for to do necessary authentication. Kubelet will pass the tokens in VolumeContext in \
         the CSI NodePublishVolume calls. The CSI driver should parse and validate the following \
         VolumeContext: \"csi.storage.k8s.io/serviceAccount.tokens\": {\n  \"<audience>\": {\n    \
         \"token\": <token>,\n    \"expirationTimestamp\": <expiration timestamp in RFC3339>,\n  },\n  \
         ...\n}\n\nNote: Audience in each TokenRequest should be different and at most one token is \
         empty string. To receive a new token after expiry, RequiresRepublish can be used to trigger \
         NodePublishVolume periodically.",
    ),
    column(
        "RequiresRepublish",
        "boolean",
        "",
        "requiresRepublish indicates the CSI driver wants `NodePublishVolume` being periodically \
         called to reflect any possible change in the mounted volume. This field defaults to \
         false.\n\nNote: After a successful initial NodePublishVolume call, subsequent calls to \
         NodePublishVolume should only update the contents of the volume. New mount points will not \
         be seen by a running container.",
    ),
    column(
        "Modes",
        "string",
        "",
        "volumeLifecycleModes defines what kind of volumes this CSI volume driver supports. The \
         default if the list is empty is \"Persistent\", which is the usage defined by the CSI \
         specification and implemented in Kubernetes via the usual PV/PVC mechanism.\n\nThe other \
         mode is \"Ephemeral\". In this mode, volumes are defined inline inside the pod spec with \
         CSIVolumeSource and their lifecycle is tied to the lifecycle of that pod. A driver has to be \
         aware of this because it is only going to get a NodePublishVolume call for such a \
         volume.\n\nFor more information about implementing this mode, see \
         https://kubernetes-csi.github.io/docs/ephemeral-local-volumes.html A driver can support one \
         or more of these modes and more modes may be added in the future.\n\nThis field is beta. \
         This field is immutable.",
    ),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::Change,
    scope: Scope::Cluster,
    columns: COLUMNS,
    unconditional_update: false,
    returns_deleted: true,
    ..ResourceDef::new::<CSIDriver>("csidriver", &Typed::<CSIDriver, _>::new(CsiDrivers))
};

struct CsiDrivers;

const TOKENS_IN_ATTRIBUTES: &str = "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, \
    set to true to prevent possible logging of tokens in volume attributes";
/// Tokens live at least this long.
const MIN_SECONDS: i64 = 600;
/// And at most this long.
const MAX_SECONDS: i64 = 1 << 32;

impl Strategy<CSIDriver> for CsiDrivers {
    fn default(&self, obj: &mut CSIDriver) {
        let spec = &mut obj.spec;
        spec.attach_required.get_or_insert(true);
        spec.pod_info_on_mount.get_or_insert(false);
        spec.storage_capacity.get_or_insert(false);
        spec.fs_group_policy.get_or_insert_with(|| "ReadWriteOnceWithFSType".to_owned());
        if spec.volume_lifecycle_modes.as_ref().is_none_or(Vec::is_empty) {
            spec.volume_lifecycle_modes = Some(vec!["Persistent".to_owned()]);
        }
        spec.requires_republish.get_or_insert(false);
        spec.se_linux_mount.get_or_insert(false);
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut CSIDriver) {
        // VolumeLimitScaling is off, as by default upstream.
        obj.spec.prevent_pod_scheduling_if_missing = None;
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut CSIDriver, old: &CSIDriver) {
        if old.spec.prevent_pod_scheduling_if_missing.is_none() {
            new.spec.prevent_pod_scheduling_if_missing = None;
        }
        if new.spec != old.spec {
            new.metadata.generation = Some(old.metadata.generation.unwrap_or(0) + 1);
        }
    }

    fn validate(&self, obj: &CSIDriver, errs: &mut ErrorList) {
        spec(&obj.spec, errs);
    }

    fn validate_update(&self, new: &CSIDriver, old: &CSIDriver, errs: &mut ErrorList) {
        let path = Path::new("spec");
        spec(&new.spec, errs);
        errs.immutable(path.child("attachedRequired"), &new.spec.attach_required, &old.spec.attach_required);
        let (modes, before) = (&new.spec.volume_lifecycle_modes, &old.spec.volume_lifecycle_modes);
        errs.immutable(path.child("volumeLifecycleModes"), modes, before);
    }

    fn warnings(&self, new: &CSIDriver, old: Option<&CSIDriver>) -> Vec<String> {
        let requests = &new.spec.token_requests;
        let changed = old.is_none_or(|old| old.spec.token_requests != *requests);
        let any = requests.as_ref().is_some_and(|r| !r.is_empty());
        if changed && any && new.spec.service_account_token_in_secrets.is_none() {
            return vec![TOKENS_IN_ATTRIBUTES.to_owned()];
        }
        Vec::new()
    }

    fn row(&self, obj: &CSIDriver, now: Timestamp) -> Vec<Value> {
        let spec = &obj.spec;
        let requests = spec.token_requests.as_ref().map_or("<unset>".to_owned(), |requests| {
            requests.iter().map(|r| r.audience.as_str()).collect::<Vec<_>>().join(",")
        });
        let modes = spec.volume_lifecycle_modes.as_deref().unwrap_or_default().join(",");
        vec![
            obj.metadata.name.clone().into(),
            spec.attach_required.unwrap_or(true).into(),
            spec.pod_info_on_mount.unwrap_or(false).into(),
            spec.storage_capacity.unwrap_or(false).into(),
            requests.into(),
            spec.requires_republish.unwrap_or(false).into(),
            or_else(&modes, "<none>"),
            age(obj.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}

fn spec(spec: &CSIDriverSpec, errs: &mut ErrorList) {
    let path = Path::new("spec");
    if let Some(policy) = &spec.fs_group_policy {
        one_of(errs, &path.child("fsGroupPolicy"), policy, &["File", "None", "ReadWriteOnceWithFSType"]);
    }
    let requests = spec.token_requests.as_deref().unwrap_or_default();
    token_requests(requests, &path.child("tokenRequests"), errs);
    for mode in spec.volume_lifecycle_modes.iter().flatten() {
        one_of(errs, &path.child("volumeLifecycleModes"), mode, &["Persistent", "Ephemeral"]);
    }
    if let Some(period) = spec.node_allocatable_update_period_seconds.filter(|period| *period < 10) {
        let why = "must be greater than or equal to 10 seconds";
        errs.invalid(path.child("nodeAllocatableUpdatePeriodSeconds"), period, why);
    }
    if let Some(flag) = spec.service_account_token_in_secrets
        && requests.is_empty()
    {
        let why = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
        errs.invalid(path.child("serviceAccountTokenInSecrets"), json!(flag), why);
    }
}

fn token_requests(requests: &[TokenRequest], list: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, request) in requests.iter().enumerate() {
        let path = list.index(i);
        if !seen.insert(request.audience.as_str()) {
            errs.duplicate(path.child("audience"), request.audience.as_str());
            continue;
        }
        let Some(seconds) = request.expiration_seconds else { continue };
        if seconds < MIN_SECONDS {
            let why = "may not specify a duration less than 10 minutes";
            errs.invalid(path.child("expirationSeconds"), seconds, why);
        }
        if seconds > MAX_SECONDS {
            let why = "may not specify a duration larger than 2^32 seconds";
            errs.invalid(path.child("expirationSeconds"), seconds, why);
        }
    }
}
