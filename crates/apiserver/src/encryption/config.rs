//! The file: `apiserver.config.k8s.io/v1` EncryptionConfiguration, validated as upstream does, in its words.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_meta::field::{ErrorList, Path};
use serde::Deserialize;
use serde_json::json;

use super::kms::KmsConfig;
use super::parse_resource;

/// Lengths of AES keys, and of secretbox keys.
const AES: &[usize] = &[16, 24, 32];
const SECRETBOX: &[usize] = &[32];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "apiVersion", default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    resources: Vec<ResourceFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResourceFile {
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    providers: Vec<ProviderFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderFile {
    aesgcm: Option<KeysFile>,
    aescbc: Option<KeysFile>,
    secretbox: Option<KeysFile>,
    identity: Option<Empty>,
    kms: Option<KmsFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysFile {
    #[serde(default)]
    keys: Vec<KeyFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KmsFile {
    #[serde(rename = "apiVersion", default)]
    api_version: String,
    #[serde(default)]
    name: String,
    cachesize: Option<i64>,
    #[serde(default)]
    endpoint: String,
    timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    #[serde(default)]
    name: String,
    #[serde(default)]
    secret: String,
}

/// Names and bytes of keys.
type Named = Vec<(String, Vec<u8>)>;

/// How values may be encrypted.
pub(super) enum Provider {
    /// Not at all.
    Identity,
    AesGcm(Named),
    AesCbc(Named),
    Secretbox(Named),
    Kms(KmsConfig),
}

/// Resources that share providers.
pub(super) struct Entry {
    pub(super) resources: Vec<String>,
    pub(super) providers: Vec<Provider>,
}

/// Reads and validates a file.
pub(super) fn parse(text: &str) -> Result<Vec<Entry>, String> {
    if text.is_empty() {
        return Err("encryption provider configuration file is empty".into());
    }
    let decoding =
        |why: &dyn std::fmt::Display| format!("error decoding encryption provider configuration file: {why}");
    let file: File = serde_yaml_ng::from_str(text).map_err(|e| decoding(&e))?;
    if (file.api_version.as_str(), file.kind.as_str())
        != ("apiserver.config.k8s.io/v1", "EncryptionConfiguration")
    {
        let (kind, version) = (&file.kind, &file.api_version);
        return Err(decoding(&format!("no kind {kind:?} is registered for version {version:?}")));
    }
    let mut errs = ErrorList::new();
    let entries = read(file, &mut errs);
    if errs.is_empty() { Ok(entries) } else { Err(errs.aggregate()) }
}

fn at_least_one(errs: &mut ErrorList, path: &Path) {
    errs.required(path.clone(), format!("at least one {path} is required"));
}

fn read(file: File, errs: &mut ErrorList) -> Vec<Entry> {
    let root = Path::new("resources");
    if file.resources.is_empty() {
        at_least_one(errs, &root);
    }
    let (mut entries, mut names) = (Vec::new(), Vec::new());
    for (i, entry) in file.resources.into_iter().enumerate() {
        let (resources, providers) = (root.index(i).child("resources"), root.index(i).child("providers"));
        if entry.resources.is_empty() {
            at_least_one(errs, &resources);
        }
        overlap(&entry.resources, &resources, errs);
        for (j, name) in entry.resources.iter().enumerate() {
            if let Some(why) = misnamed(name) {
                errs.invalid(resources.index(j), name.as_str(), why);
            }
        }
        if entry.providers.is_empty() {
            at_least_one(errs, &providers);
        }
        let made = entry.providers.into_iter().enumerate();
        let made = made.filter_map(|(j, p)| provider(p, &providers.index(j), &mut names, errs)).collect();
        entries.push(Entry { resources: entry.resources, providers: made });
    }
    entries
}

/// Resources that are named twice, or by two names.
fn overlap(resources: &[String], path: &Path, errs: &mut ErrorList) {
    let parsed: Vec<(String, String)> = resources.iter().map(|r| parse_resource(r)).collect();
    let (mut twice, mut masked) = (false, false);
    for (i, a) in parsed.iter().enumerate() {
        for b in parsed.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, b)| b) {
            if a == b && !twice {
                twice = true;
            } else if !masked {
                let all = (a.0.as_str(), a.1.as_str()) == ("*", "*");
                masked = all || a.0 == b.0 && (a.1 == "*" || b.1 == "*");
            }
        }
    }
    if twice {
        errs.invalid(path.clone(), json!(resources), "the same resource cannot be specified multiple times");
    }
    if masked {
        let why = "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as \
                   they will be masked";
        errs.invalid(path.clone(), json!(resources), why);
    }
}

fn misnamed(name: &str) -> Option<&'static str> {
    let (group, resource) = parse_resource(name);
    if name.to_lowercase() != name {
        return Some("resource name should not contain capital letters");
    }
    match (name, group.as_str()) {
        ("*", _) => {
            Some("use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources")
        }
        ("apiserveripinfo" | "serviceipallocations" | "servicenodeportallocations", _) => {
            Some("resources which do not have REST API/s cannot be encrypted")
        }
        (_, "events.k8s.io") => Some(
            "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the \
             config file",
        ),
        (_, "extensions") => Some("'extensions' group has been removed and cannot be used for encryption"),
        (_, "*") if resource != "*" => Some("encrypting the same resource across groups is not supported"),
        _ => None,
    }
}

fn provider(
    provider: ProviderFile,
    path: &Path,
    names: &mut Vec<String>,
    errs: &mut ErrorList,
) -> Option<Provider> {
    let ProviderFile { aesgcm, aescbc, secretbox, identity, kms } = provider;
    let given = [
        ("AESGCM", aesgcm.is_some()),
        ("AESCBC", aescbc.is_some()),
        ("Secretbox", secretbox.is_some()),
        ("Identity", identity.is_some()),
        ("KMS", kms.is_some()),
    ];
    // What is shown names the providers, not what is in them.
    let empty = |is: bool| if is { json!({}) } else { serde_json::Value::Null };
    let shown: serde_json::Map<_, _> = given.iter().map(|(k, is)| ((*k).to_owned(), empty(*is))).collect();
    let why = match given.iter().filter(|(_, is)| *is).count() {
        0 => {
            "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity"
        }
        1 => "",
        _ => {
            "more than one provider specified in a single element, should split into different list elements"
        }
    };
    if !why.is_empty() {
        errs.invalid(path.clone(), shown, why);
    }
    if let Some(file) = kms {
        return self::kms(file, &path.child("kms"), names, errs).map(Provider::Kms);
    }
    let mut read =
        |file: KeysFile, name: &str, lengths| keys(file.keys, &path.child(name).child("keys"), lengths, errs);
    if let Some(file) = aesgcm {
        return Some(Provider::AesGcm(read(file, "aesgcm", AES)));
    }
    if let Some(file) = aescbc {
        return Some(Provider::AesCbc(read(file, "aescbc", AES)));
    }
    if let Some(file) = secretbox {
        return Some(Provider::Secretbox(read(file, "secretbox", SECRETBOX)));
    }
    identity.map(|Empty {}| Provider::Identity)
}

/// A KMS plugin; `names` are those of the plugins before it.
fn kms(file: KmsFile, path: &Path, names: &mut Vec<String>, errs: &mut ErrorList) -> Option<KmsConfig> {
    let before = errs.len();
    let KmsFile { api_version, name, cachesize, endpoint, timeout } = file;
    if name.is_empty() {
        errs.required(path.child("name"), "name is a mandatory field for a provider");
    }
    if name.contains(':') {
        let why = format!("invalid KMS provider name {name}, must not contain ':'");
        errs.invalid(path.child("name"), name.as_str(), why);
    }
    if names.contains(&name) {
        let why = format!("duplicate KMS provider name {name}, names must be unique");
        errs.invalid(path.child("name"), name.as_str(), why);
    }
    names.push(name.clone());
    let said = timeout.as_deref().unwrap_or("3s");
    let nanos = coracle_cel::go_duration(said).ok().and_then(|nanos| u64::try_from(nanos).ok());
    let timeout = nanos.filter(|nanos| *nanos > 0).map(Duration::from_nanos);
    if timeout.is_none() {
        errs.invalid(path.child("timeout"), said, "timeout should be a positive value");
    }
    let socket = endpoint.strip_prefix("unix://");
    if endpoint.is_empty() {
        errs.invalid(path.child("endpoint"), "", "endpoint is a mandatory field for a kms");
    } else if socket.is_none() {
        let scheme = endpoint.split_once("://").map_or("", |(scheme, _)| scheme);
        let why = format!("unsupported scheme {scheme:?} for KMS provider, only unix is supported");
        errs.invalid(path.child("endpoint"), endpoint.as_str(), why);
    }
    match api_version.as_str() {
        "v2" => {}
        "" | "v1" => errs.forbidden(
            path.child("apiVersion"),
            "KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead",
        ),
        _ => {
            let why = "unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported";
            errs.invalid(path.child("apiVersion"), api_version.as_str(), why);
        }
    }
    if let Some(size) = cachesize {
        errs.invalid(path.child("cachesize"), size, "cachesize is not supported in v2");
    }
    let socket = socket?.into();
    (errs.len() == before).then_some(KmsConfig { name, socket, timeout: timeout? })
}

fn keys(files: Vec<KeyFile>, path: &Path, lengths: &[usize], errs: &mut ErrorList) -> Named {
    if files.is_empty() {
        errs.required(path.clone(), "at least one keys is required");
    }
    let mut named = Vec::new();
    for (i, KeyFile { name, secret }) in files.into_iter().enumerate() {
        let path = path.index(i);
        if name.is_empty() {
            errs.required(path.child("name"), "name is a mandatory field for a key");
        }
        if secret.is_empty() {
            errs.required(path.child("secret"), "secret is a mandatory field for a key");
            continue;
        }
        match STANDARD.decode(&secret) {
            Err(_) => errs.invalid(path.child("secret"), "REDACTED", "secrets must be base64 encoded"),
            Ok(key) if !lengths.contains(&key.len()) => {
                let lengths: Vec<String> = lengths.iter().map(usize::to_string).collect();
                let (length, lengths) = (key.len(), lengths.join(" "));
                let why = format!(
                    "secret is not of the expected length, got {length}, expected one of [{lengths}]"
                );
                errs.invalid(path.child("secret"), "REDACTED", why);
            }
            Ok(key) => named.push((name, key)),
        }
    }
    named
}
