//! Query parameters, and the request options they carry.

use std::borrow::Cow;

use coracle_client::{DeleteOptions, ListOptions, WriteOptions};
use coracle_meta::Status;
use coracle_meta::field::ErrorList;

/// Query parameters in order, decoded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Query<'a> {
    /// Parses a query string. Malformed parts are left out, as Go's parser does.
    pub(crate) fn new(text: &'a str) -> Self {
        let parts = text.split('&').filter(|p| !p.is_empty() && !p.contains(';'));
        Self(
            parts
                .filter_map(|p| {
                    let (key, value) = p.split_once('=').unwrap_or((p, ""));
                    Some((decode(key)?, decode(value)?))
                })
                .collect(),
        )
    }

    /// The first value of a parameter.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_ref())
    }

    /// All values of a parameter.
    pub(crate) fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_ref())
    }

    /// The first value, or empty.
    pub(crate) fn text(&self, key: &str) -> String {
        self.get(key).unwrap_or("").to_owned()
    }

    /// Whether a boolean parameter is on: anything but `0` and `false`.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| v != "0" && !v.eq_ignore_ascii_case("false"))
    }

    fn number(&self, key: &str) -> Result<Option<i64>, Status> {
        match self.get(key) {
            None => Ok(None),
            Some(text) => match text.parse::<i64>() {
                Ok(n) => Ok(Some(n)),
                Err(e) => {
                    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
                    let range = matches!(e.kind(), PosOverflow | NegOverflow);
                    let what = if range { "value out of range" } else { "invalid syntax" };
                    let why = format!("strconv.ParseInt: parsing {text:?}: {what}");
                    Err(Status::bad_request(why))
                }
            },
        }
    }

    /// Selectors and paging.
    pub(crate) fn list_options(&self) -> Result<ListOptions, Status> {
        self.timeout_seconds()?;
        Ok(ListOptions {
            label_selector: self.text("labelSelector"),
            field_selector: self.text("fieldSelector"),
            limit: usize::try_from(self.number("limit")?.unwrap_or(0)).unwrap_or(0),
            continue_token: self.text("continue"),
            resource_version: self.text("resourceVersion"),
            resource_version_match: self.text("resourceVersionMatch"),
        })
    }

    /// `timeoutSeconds`.
    pub(crate) fn timeout_seconds(&self) -> Result<Option<u64>, Status> {
        Ok(self.number("timeoutSeconds")?.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0))
    }

    /// `sendInitialEvents`.
    pub(crate) fn send_initial_events(&self) -> Option<bool> {
        self.get("sendInitialEvents").map(|v| v != "false" && v != "0")
    }

    /// Options of create, update and patch; `kind` names them in errors.
    pub(crate) fn write_options(&self, kind: &str) -> Result<WriteOptions, Status> {
        let dry_run = self.dry_run(kind)?;
        Ok(WriteOptions {
            field_manager: self.text("fieldManager"),
            force: self.flag("force"),
            dry_run,
            field_validation: self.text("fieldValidation"),
        })
    }

    fn dry_run(&self, kind: &str) -> Result<bool, Status> {
        let asked: Vec<&str> = self.all("dryRun").collect();
        check_dry_run(kind, &asked)
    }

    /// Options of delete given as parameters.
    pub(crate) fn delete_options(&self) -> Result<DeleteOptions, Status> {
        let orphan = self.get("orphanDependents").map(|v| v != "false" && v != "0");
        let orphan = orphan.map(|orphan| if orphan { "Orphan" } else { "Background" }.to_owned());
        let policy = self.get("propagationPolicy").filter(|p| !p.is_empty()).map(str::to_owned);
        check_one_policy(policy.as_deref(), orphan.is_some())?;
        Ok(DeleteOptions {
            grace_period_seconds: self.number("gracePeriodSeconds")?,
            propagation_policy: policy.or(orphan),
            dry_run: self.dry_run("DeleteOptions")?,
            ..DeleteOptions::default()
        })
    }
}

/// What becomes of dependents is said in one way only.
pub(crate) fn check_one_policy(policy: Option<&str>, orphan: bool) -> Result<(), Status> {
    let Some(policy) = policy.filter(|_| orphan) else { return Ok(()) };
    let mut errs = ErrorList::new();
    let why = "orphanDependents and deletionPropagation cannot be both set";
    errs.invalid("propagationPolicy", policy, why);
    Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &errs))
}

/// `dryRun` has one possible value.
pub(crate) fn check_dry_run(kind: &str, asked: &[&str]) -> Result<bool, Status> {
    let mut errs = ErrorList::new();
    if asked.iter().any(|value| *value != "All") {
        errs.not_supported("dryRun", serde_json::json!(asked), &["All"]);
    }
    if errs.is_empty() { Ok(!asked.is_empty()) } else { Err(Status::invalid("meta.k8s.io", kind, "", &errs)) }
}

/// Percent-decodes a path or parameter; `None` when malformed.
pub(crate) fn decode(text: &str) -> Option<Cow<'_, str>> {
    percent(text, true)
}

/// Percent-decodes a path.
pub(crate) fn decode_path(text: &str) -> Option<Cow<'_, str>> {
    percent(text, false)
}

fn percent(text: &str, plus: bool) -> Option<Cow<'_, str>> {
    if !text.bytes().any(|b| b == b'%' || (plus && b == b'+')) {
        return Some(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'+' if plus => out.push(b' '),
            b'%' => {
                let hex = |b: Option<u8>| char::from(b?).to_digit(16);
                let high = hex(bytes.next())?;
                let low = hex(bytes.next())?;
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            b => out.push(b),
        }
    }
    Some(Cow::Owned(String::from_utf8_lossy(&out).into_owned()))
}
