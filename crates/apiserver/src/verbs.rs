//! The generic verbs: one path for every kind. A kind contributes its definition and strategy only.

mod admin_access;
pub(crate) mod admit;
mod beyond;
pub(crate) mod binding;
mod commit;
mod components;
pub(crate) mod create;
pub(crate) mod decode;
pub(crate) mod delete;
mod escalation;
mod eviction;
pub(crate) mod list;
pub(crate) mod patch;
pub(crate) mod read;
pub(crate) mod review;
pub(crate) mod scale;
pub(crate) mod sent;
mod signing;
pub(crate) mod token;
pub(crate) mod update;
pub(crate) mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use coracle_admission::Options;
use coracle_auth::UserInfo;
use coracle_client::{DeleteOptions, WriteOptions};
use coracle_meta::field::ErrorList;
use coracle_meta::{Object, Status};
use coracle_resources::def::{Context, Subresource};
use parking_lot::Mutex;
use serde_json::Value;

use crate::audit::Trail;
use crate::cache::CacheEntry;

/// Who makes a request, and with what program.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The user.
    pub(crate) user: Arc<UserInfo>,
    /// Field manager when the request names none: the User-Agent up to its first slash.
    pub(crate) agent: Arc<str>,
    /// Warnings that the client gets even when the request fails.
    pub(crate) warned: Arc<Mutex<Vec<String>>>,
    /// What admission notes for the audit log.
    pub(crate) noted: Arc<Mutex<BTreeMap<String, String>>>,
    /// What the request asks for beside the object.
    pub(crate) options: Arc<Options>,
}

impl Caller {
    /// A caller without warnings so far.
    pub(crate) fn new(user: Arc<UserInfo>, agent: Arc<str>) -> Self {
        Self { user, agent, warned: Arc::default(), noted: Arc::default(), options: Arc::default() }
    }

    /// With notes that go into a trail of the audit log.
    pub(crate) fn noting(mut self, trail: Option<&Trail>) -> Self {
        if let Some(trail) = trail {
            self.noted = trail.notes.clone();
        }
        self
    }

    /// The caller of a write with these options; `patch`: by PATCH.
    pub(crate) fn asking(&self, opts: &WriteOptions, patch: bool) -> Self {
        let options = Options {
            field_manager: opts.field_manager.clone(),
            field_validation: opts.field_validation.clone(),
            force: (patch && opts.force).then_some(true),
            patch,
            ..Options::default()
        };
        Self { options: Arc::new(options), ..self.clone() }
    }

    /// The caller of a deletion with these options.
    pub(crate) fn deleting(&self, opts: &DeleteOptions) -> Self {
        let options = Options {
            grace_period_seconds: opts.grace_period_seconds,
            propagation_policy: opts.propagation_policy.clone(),
            ..Options::default()
        };
        Self { options: Arc::new(options), ..self.clone() }
    }

    /// Keeps notes for the audit log.
    pub(crate) fn note(&self, notes: Vec<(String, String)>) {
        if !notes.is_empty() {
            self.noted.lock().extend(notes);
        }
    }

    /// What strategies are told of the caller.
    pub(crate) fn context(&self, now: jiff::Timestamp) -> Context<'_> {
        let UserInfo { name, uid, groups, extra } = &*self.user;
        Context { user: name, uid, groups, extra: Some(extra), now }
    }

    /// Notes warnings for the client.
    pub(crate) fn warn(&self, warnings: &[String]) {
        let mut warned = self.warned.lock();
        for warning in warnings {
            if !warned.contains(warning) {
                warned.push(warning.clone());
            }
        }
    }
}

/// An object on its way in.
#[derive(Debug)]
pub(crate) enum Input {
    /// JSON text.
    Text(Bytes),
    /// Parsed.
    Json(Value),
    /// Parsed from YAML, with what the strict reader says of keys that stand twice.
    Yaml(Value, Option<String>),
    /// Decoded, shared.
    Object(Arc<dyn Object>),
}

/// What a write or read of one object results in.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The object.
    pub(crate) entry: Arc<CacheEntry>,
    /// For the client.
    pub(crate) warnings: Vec<String>,
    /// 201 instead of 200.
    pub(crate) created: bool,
}

impl Outcome {
    /// A plain result.
    pub(crate) fn of(entry: Arc<CacheEntry>) -> Self {
        Self { entry, warnings: Vec::new(), created: false }
    }
}

/// Which part of an object a write is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The resource itself.
    Main,
    /// `/status`.
    Status,
    /// `/ephemeralcontainers` of Pods.
    EphemeralContainers,
    /// `/resize` of Pods.
    Resize,
    /// `/finalize` of Namespaces.
    Finalize,
    /// `/approval` of CertificateSigningRequests.
    Approval,
    /// `/scale`, written through the parent.
    Scale,
}

impl Part {
    /// The subresource's definition.
    pub(crate) fn subresource(self) -> Subresource {
        match self {
            Self::EphemeralContainers => Subresource::EphemeralContainers,
            Self::Resize => Subresource::Resize,
            Self::Finalize => Subresource::Finalize,
            Self::Approval => Subresource::Approval,
            Self::Scale => Subresource::Scale,
            Self::Main | Self::Status => Subresource::Status,
        }
    }

    /// The path segment; empty for the resource itself.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Status => "status",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Resize => "resize",
            Self::Finalize => "finalize",
            Self::Approval => "approval",
            Self::Scale => "scale",
        }
    }
}

/// Checks the options of a write as upstream's `ValidateCreateOptions` and its siblings do.
///
/// # Errors
/// 422 naming the options kind.
pub(crate) fn check_options(kind: &str, opts: &WriteOptions) -> Result<(), Status> {
    let mut errs = ErrorList::new();
    options_errors(opts, &mut errs);
    if errs.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", kind, "", &errs)) }
}

/// What is wrong with the options of any write.
fn options_errors(opts: &WriteOptions, errs: &mut ErrorList) {
    if opts.field_manager.len() > 128 {
        errs.too_long("fieldManager", 128);
    }
    for (i, c) in opts.field_manager.char_indices() {
        if c.is_control() {
            let shown = go_quote(&opts.field_manager);
            errs.push(coracle_meta::field::Error {
                kind: coracle_meta::field::ErrorKind::Invalid,
                path: "fieldManager".into(),
                value: Some(shown),
                detail: format!("invalid character U+{:04X} (at position {i})", c as u32),
            });
        }
    }
    if !matches!(opts.field_validation.as_str(), "" | "Ignore" | "Warn" | "Strict") {
        let supported = ["", "Ignore", "Strict", "Warn"];
        errs.not_supported("fieldValidation", opts.field_validation.as_str(), &supported);
    }
}

/// A string as Go's `%q` shows it.
pub(crate) fn go_quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if c.is_control() && u32::from(c) < 0x80 => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
