//! Checks of volumes: names, exactly one source each, and the sources that Kubernetes itself provides.

use std::collections::BTreeSet;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use coracle_meta::object_meta::{validate_annotations, validate_labels};
use coracle_meta::quantity::Quantity as Number;
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, EphemeralVolumeSource, KeyToPath, PodSpec, ProjectedVolumeSource, Volume,
    VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{env, volume_sources};
use crate::check::{local_file, one_of};
use crate::common::text;
use crate::core::persistent_volume_claim;

/// What a bad file mode is told.
const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// Downward API fields a volume may hold.
const VOLUME_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// Checks the volumes of a spec. Yields the names of those without a fault: only they can be mounted.
pub(crate) fn all<'a>(spec: &'a PodSpec, path: &Path, errs: &mut ErrorList) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut good = BTreeSet::new();
    for (i, volume) in spec.volumes.iter().flatten().enumerate() {
        let path = path.index(i);
        let before = errs.len();
        source(volume, &path, errs);
        let name = volume.name.as_str();
        if name.is_empty() {
            errs.required(path.child("name"), "");
        } else {
            let messages = names::dns1123_label(name);
            if messages.is_empty() && !seen.insert(name) {
                errs.duplicate(path.child("name"), name);
            }
            crate::check::each(errs, &path.child("name"), name, messages);
        }
        if errs.len() == before {
            good.insert(name);
        }
    }
    good
}

/// Counts the sources of one volume and refuses all after the first.
pub(crate) struct OnlyOne<'a> {
    count: usize,
    path: &'a Path,
}

impl<'a> OnlyOne<'a> {
    /// No source yet of the volume at `path`.
    pub(crate) fn new(path: &'a Path) -> Self {
        Self { count: 0, path }
    }

    /// How many sources there were.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The path of a source that may be a second one.
    pub(crate) fn another(&mut self, name: &str) -> Path {
        self.count += 1;
        self.path.child(name)
    }

    /// The path of the volume.
    pub(crate) fn path(&self) -> &Path {
        self.path
    }

    /// The path of a source that is the first one; else `None`, with an error where it is a second one.
    pub(crate) fn first(&mut self, set: bool, name: &str, errs: &mut ErrorList) -> Option<Path> {
        if !set {
            return None;
        }
        self.count += 1;
        let path = self.path.child(name);
        if self.count > 1 {
            errs.forbidden(path, "may not specify more than 1 volume type");
            return None;
        }
        Some(path)
    }
}

fn source(volume: &Volume, path: &Path, errs: &mut ErrorList) {
    let mut only = OnlyOne::new(path);
    if let Some(empty_dir) = &volume.empty_dir
        && let Some(at) = only.first(true, "emptyDir", errs)
        && empty_dir.size_limit.as_ref().is_some_and(|limit| Number::from_api(limit).sign() < 0)
    {
        errs.forbidden(at.child("sizeLimit"), "SizeLimit field must be a valid resource quantity");
    }
    volume_sources::host_path(volume, &mut only, errs);
    volume_sources::disks(volume, &mut only, errs);
    if let Some(secret) = &volume.secret
        && let Some(at) = only.first(true, "secret", errs)
    {
        if text(secret.secret_name.as_ref()).is_empty() {
            errs.required(at.child("secretName"), "");
        }
        mode(secret.default_mode, &at.child("defaultMode"), errs);
        items(secret.items.as_deref().unwrap_or_default(), &at.child("items"), errs);
    }
    volume_sources::network(volume, &mut only, errs);
    if let Some(claim) = &volume.persistent_volume_claim
        && let Some(at) = only.first(true, "persistentVolumeClaim", errs)
        && claim.claim_name.is_empty()
    {
        errs.required(at.child("claimName"), "");
    }
    volume_sources::clusters(volume, &mut only, errs);
    if let Some(downward) = &volume.downward_api
        // A second one is told of with upstream's misspelling.
        && only.first(true, "downwarAPI", errs).is_some()
    {
        let at = path.child("downwardAPI");
        mode(downward.default_mode, &at.child("defaultMode"), errs);
        for item in downward.items.iter().flatten() {
            downward_file(item, &at, errs);
        }
    }
    volume_sources::channels(volume, &mut only, errs);
    if let Some(config_map) = &volume.config_map
        && let Some(at) = only.first(true, "configMap", errs)
    {
        if config_map.name.is_empty() {
            errs.required(at.child("name"), "");
        }
        mode(config_map.default_mode, &at.child("defaultMode"), errs);
        items(config_map.items.as_deref().unwrap_or_default(), &at.child("items"), errs);
    }
    volume_sources::cloud(volume, &mut only, errs);
    if let Some(projection) = &volume.projected
        && let Some(at) = only.first(true, "projected", errs)
    {
        projected(projection, &at, errs);
    }
    volume_sources::others(volume, &mut only, errs);
    if let Some(claim) = &volume.ephemeral
        && let Some(at) = only.first(true, "ephemeral", errs)
    {
        ephemeral(claim, &at, errs);
    }
    if let Some(image) = &volume.image
        && let Some(at) = only.first(true, "image", errs)
    {
        if text(image.reference.as_ref()).is_empty() {
            errs.required(at.child("reference"), "");
        }
        let policy = text(image.pull_policy.as_ref());
        one_of(errs, &at.child("pullPolicy"), policy, &["Always", "IfNotPresent", "Never"]);
    }
    if only.count == 0 {
        errs.required(path, "must specify a volume type");
    }
}

fn mode(mode: Option<i32>, path: &Path, errs: &mut ErrorList) {
    if let Some(mode) = mode.filter(|m| !(0..=0o777).contains(m)) {
        errs.invalid(path, mode, MODE);
    }
}

fn items(items: &[KeyToPath], path: &Path, errs: &mut ErrorList) {
    for (i, item) in items.iter().enumerate() {
        let path = path.index(i);
        if item.key.is_empty() {
            errs.required(path.child("key"), "");
        }
        if item.path.is_empty() {
            errs.required(path.child("path"), "");
        }
        local_file(errs, &path.child("path"), &item.path);
        mode(item.mode, &path.child("mode"), errs);
    }
}

fn downward_file(item: &DownwardAPIVolumeFile, path: &Path, errs: &mut ErrorList) {
    if item.path.is_empty() {
        errs.required(path.child("path"), "");
    }
    local_file(errs, &path.child("path"), &item.path);
    match (&item.field_ref, &item.resource_field_ref) {
        (Some(field), other) => {
            env::field_ref(field, VOLUME_FIELDS, &path.child("fieldRef"), errs);
            if other.is_some() {
                errs.invalid(
                    path,
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                );
            }
        }
        (None, Some(resource)) => {
            env::resource_field_ref(resource, true, &path.child("resourceFieldRef"), errs);
        }
        (None, None) => errs.required(path, "one of fieldRef and resourceFieldRef is required"),
    }
    mode(item.mode, &path.child("mode"), errs);
}

fn projected(source: &ProjectedVolumeSource, path: &Path, errs: &mut ErrorList) {
    mode(source.default_mode, &path.child("defaultMode"), errs);
    let mut seen = BTreeSet::new();
    for (i, one) in source.sources.iter().flatten().enumerate() {
        projection(one, &path.child("sources").index(i), path, &mut seen, errs);
    }
}

/// A token needs an account to be the token of. Templates may do without: theirs comes with the pod.
pub(super) fn tokens_without_account(spec: &PodSpec, path: &Path, errs: &mut ErrorList) {
    if !text(spec.service_account_name.as_ref()).is_empty() {
        return;
    }
    for (i, volume) in spec.volumes.iter().flatten().enumerate() {
        let path = path.child("volumes").index(i).child("projected").child("sources");
        let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
        for (j, _) in sources.enumerate().filter(|(_, source)| source.service_account_token.is_some()) {
            let at = path.index(j).child("serviceAccountToken");
            errs.forbidden(at, "must not be specified when serviceAccountName is not set");
        }
    }
}

/// Checks the path of a projected file; all files of the volume share one directory.
fn projected_path<'a>(file: &'a str, seen: &mut BTreeSet<&'a str>, volume: &Path, errs: &mut ErrorList) {
    if !file.is_empty() {
        local_file(errs, &volume.child("path"), file);
        if !seen.insert(file) {
            errs.invalid(volume, file, "conflicting duplicate paths");
        }
    }
}

fn projection<'a>(
    source: &'a VolumeProjection,
    at: &Path,
    volume: &Path,
    seen: &mut BTreeSet<&'a str>,
    errs: &mut ErrorList,
) {
    let mut count = 0;
    let mut first = |errs: &mut ErrorList| {
        count += 1;
        if count > 1 {
            errs.forbidden(at, "may not specify more than 1 volume type per source");
        }
        count == 1
    };
    let secret = source.secret.as_ref().map(|s| ("secret", s.name.as_str(), s.items.as_deref()));
    let config_map = source.config_map.as_ref().map(|c| ("configMap", c.name.as_str(), c.items.as_deref()));
    for (field, name, list) in secret.into_iter().chain(config_map) {
        if !first(errs) {
            continue;
        }
        if name.is_empty() {
            errs.required(at.child(field).child("name"), "");
        }
        let list = list.unwrap_or_default();
        items(list, &at.child(field).child("items"), errs);
        for item in list.iter().filter(|item| !item.path.is_empty()) {
            if !seen.insert(&item.path) {
                errs.invalid(volume, name, "conflicting duplicate paths");
            }
        }
    }
    if let Some(downward) = &source.downward_api
        && first(errs)
    {
        for item in downward.items.iter().flatten() {
            downward_file(item, &at.child("downwardAPI"), errs);
            if !item.path.is_empty() && !seen.insert(&item.path) {
                errs.invalid(volume, item.path.as_str(), "conflicting duplicate paths");
            }
        }
    }
    if let Some(token) = &source.service_account_token
        && first(errs)
    {
        let at = at.child("serviceAccountToken");
        let seconds = token.expiration_seconds.unwrap_or(0);
        if seconds < 600 {
            let why = "may not specify a duration less than 10 minutes";
            errs.invalid(at.child("expirationSeconds"), seconds, why);
        } else if seconds > 1 << 32 {
            let why = "may not specify a duration larger than 2^32 seconds";
            errs.invalid(at.child("expirationSeconds"), seconds, why);
        }
        if token.path.is_empty() {
            errs.required(volume.child("path"), "");
        } else {
            local_file(errs, &volume.child("path"), &token.path);
        }
    }
    for file in certificate_files(source, errs, &mut first) {
        projected_path(file, seen, volume, errs);
    }
}

/// Paths of the files that a certificate source makes.
fn certificate_files<'a>(
    source: &'a VolumeProjection,
    errs: &mut ErrorList,
    first: &mut impl FnMut(&mut ErrorList) -> bool,
) -> Vec<&'a str> {
    // Trust bundles are never kept, so that only pod certificates are left.
    let Some(certificate) = &source.pod_certificate else { return Vec::new() };
    if !first(errs) {
        return Vec::new();
    }
    [&certificate.certificate_chain_path, &certificate.key_path, &certificate.credential_bundle_path]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect()
}

fn ephemeral(source: &EphemeralVolumeSource, path: &Path, errs: &mut ErrorList) {
    let path = path.child("volumeClaimTemplate");
    let Some(template) = &source.volume_claim_template else { return errs.required(path, "") };
    let at = path.child("metadata");
    let empty = ObjectMeta::default();
    let meta = template.metadata.as_ref().unwrap_or(&empty);
    if let Some(labels) = &meta.labels {
        validate_labels(labels, &at.child("labels"), errs);
    }
    if let Some(annotations) = &meta.annotations {
        validate_annotations(annotations, &at.child("annotations"), errs);
    }
    let filled = |value: &Option<String>| value.as_ref().is_some_and(|v| !v.is_empty());
    for (name, set) in [
        ("name", filled(&meta.name)),
        ("generateName", filled(&meta.generate_name)),
        ("namespace", filled(&meta.namespace)),
        ("selfLink", filled(&meta.self_link)),
        ("uID", filled(&meta.uid)),
        ("resourceVersion", filled(&meta.resource_version)),
        ("generation", meta.generation.is_some_and(|g| g != 0)),
        ("creationTimestamp", meta.creation_timestamp.is_some()),
        ("deletionTimestamp", meta.deletion_timestamp.is_some()),
        ("deletionGracePeriodSeconds", meta.deletion_grace_period_seconds.is_some()),
        ("ownerReferences", meta.owner_references.is_some()),
        ("finalizers", meta.finalizers.is_some()),
        ("managedFields", meta.managed_fields.is_some()),
    ] {
        if set {
            errs.forbidden(at.child(name), "cannot be set");
        }
    }
    persistent_volume_claim::validate_spec(Some(&template.spec), false, &path.child("spec"), errs);
}
