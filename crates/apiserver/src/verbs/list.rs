//! list: selectors, paging, resourceVersion semantics. Answers with cache entries, not with copies.

use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD, URL_SAFE_NO_PAD};
use coracle_client::ListOptions;
use coracle_meta::field::ErrorList;
use coracle_meta::selector::{FieldSelector, LabelSelector};
use coracle_meta::{Reason, Status};
use coracle_store::{Range, StoreError, prefix_end};
use serde_json::{Value, json};

use super::commit::store_status;
use super::read::parse_revision;
use crate::cache::{CacheEntry, Filter};
use crate::registry::Resource;
use crate::server::Server;

/// Base64 as Go reads it: trailing bits may be anything.
const LENIENT: GeneralPurpose =
    GeneralPurpose::new(&alphabet::URL_SAFE, NO_PAD.with_decode_allow_trailing_bits(true));

/// A page of a list.
pub(crate) struct Page {
    /// In key order.
    pub(crate) entries: Vec<Arc<CacheEntry>>,
    /// `metadata.resourceVersion`.
    pub(crate) revision: u64,
    /// `metadata.continue`, empty on the last page.
    pub(crate) continue_token: String,
    /// `metadata.remainingItemCount`, when known.
    pub(crate) remaining: Option<usize>,
}

const MATCH: &str = "resourceVersionMatch";

/// A continue token: the revision to read at and the first key, relative to the resource's prefix.
struct Token {
    revision: u64,
    start: String,
}

impl Server {
    /// Lists objects.
    pub(crate) async fn list(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        opts: &ListOptions,
    ) -> Result<Page, Status> {
        let mut filter = filter(resource, namespace, name, opts)?;
        let late = late(resource, &mut filter);
        let wanted = limit_of(opts);
        let limit = if late.is_some() { 0 } else { wanted };
        let stored = self.list_stored(resource, &filter, opts, limit).await?;
        let mut entries = self.all_in_version(resource, stored.entries).await?;
        let Some(late) = late else { return Ok(Page { entries, ..stored }) };
        entries.retain(|e| late.selects(e));
        Ok(page(entries, stored.revision, wanted, false))
    }

    /// As [`Server::list`], each object in the version it is stored in, and at most `limit` of them.
    async fn list_stored(
        &self,
        resource: &Resource,
        filter: &Filter,
        opts: &ListOptions,
        limit: usize,
    ) -> Result<Page, Status> {
        if !opts.continue_token.is_empty() {
            return self.list_on(resource, filter, opts, limit).await;
        }
        let asked = parse_revision(&opts.resource_version)
            .map_err(|e| Status::bad_request(format!("invalid resource version: {e}")))?;
        let exact = opts.resource_version_match == "Exact"
            || (opts.resource_version_match.is_empty() && opts.limit > 0 && asked.is_some_and(|r| r > 0));
        match asked {
            Some(revision) if exact && revision > 0 => {
                self.reach(revision).await?;
                return self.list_at(resource, filter, &filter.key, revision, limit).await;
            }
            Some(0) => {}
            Some(revision) => self.reach(revision).await?,
            None => self.fresh().await?,
        }
        Ok(self.first_page(resource, filter, limit))
    }

    fn first_page(&self, resource: &Resource, filter: &Filter, limit: usize) -> Page {
        let snapshot = resource.cache.snapshot(filter, self.cache.applied());
        page(snapshot.entries, snapshot.revision, limit, filter.is_plain())
    }

    /// A page behind the first.
    async fn list_on(
        &self,
        resource: &Resource,
        filter: &Filter,
        opts: &ListOptions,
        limit: usize,
    ) -> Result<Page, Status> {
        let token = decode_token(&opts.continue_token)?;
        if !opts.resource_version.is_empty() && opts.resource_version != "0" {
            let why = "specifying resource version is not allowed when using continue";
            return Err(Status::bad_request(why));
        }
        // Never before the range asked for, whatever the token says.
        let start = format!("{}{}", resource.prefix, token.start).max(filter.key.clone());
        if token.revision == 0 {
            // An inconsistent continuation: the newest state from there on.
            self.fresh().await?;
            let mut snapshot = resource.cache.snapshot(filter, self.cache.applied());
            snapshot.entries.retain(|e| *e.key >= *start);
            return Ok(page(snapshot.entries, snapshot.revision, limit, filter.is_plain()));
        }
        if self.cache.applied() < token.revision {
            self.reach(token.revision).await?;
        }
        let result = self.list_at(resource, filter, &start, token.revision, limit).await;
        result.map_err(|status| match status.reason() {
            Reason::Expired => inconsistent(&token),
            _ => status,
        })
    }

    /// The objects from key `start` on, as they were at `revision`.
    async fn list_at(
        &self,
        resource: &Resource,
        filter: &Filter,
        start: &str,
        revision: u64,
        limit: usize,
    ) -> Result<Page, Status> {
        let mut snapshot = resource.cache.snapshot(filter, self.cache.applied());
        if snapshot.last <= revision && revision >= self.store.compacted() {
            // Unchanged since: the cache is that state. What is compacted is gone even so, as clients are promised.
            snapshot.entries.retain(|e| *e.key >= *start);
            return Ok(page(snapshot.entries, revision, limit, filter.is_plain()));
        }
        let (start, end) = if filter.single {
            (filter.key.clone(), format!("{}\0", filter.key))
        } else {
            (start.to_owned(), prefix_end(&filter.key))
        };
        let range = Range { start, end, limit: 0, revision: Some(revision) };
        let result = self.store.range(range).await.map_err(|e| match e {
            StoreError::Compacted { .. } => too_old_list(),
            e => store_status(&e),
        })?;
        let entries = result
            .entries
            .into_iter()
            .map(|e| Arc::new(self.cache.entry(resource, &e.key, &e.value, e.mod_revision, true)));
        let entries = entries.filter(|e| filter.selects(e)).collect();
        Ok(page(entries, revision, limit, filter.is_plain()))
    }
}

/// How many objects a page has at most, 0 for all. Who takes any state of the cache gets all of it, as upstream's
/// cache answers then.
fn limit_of(opts: &ListOptions) -> usize {
    let cached = opts.resource_version == "0" && opts.continue_token.is_empty();
    if cached { 0 } else { opts.limit }
}

/// Cuts a page off.
fn page(mut entries: Vec<Arc<CacheEntry>>, revision: u64, limit: usize, plain: bool) -> Page {
    if limit == 0 || entries.len() <= limit {
        return Page { entries, revision, continue_token: String::new(), remaining: None };
    }
    let remaining = plain.then_some(entries.len() - limit);
    entries.truncate(limit);
    let last = entries.last().map_or("", |e| e.tail());
    let continue_token = encode_token(last, revision);
    Page { entries, revision, continue_token, remaining }
}

/// Compiles the selectors of a list or watch, and checks that the fields are selectable.
///
/// # Errors
/// 400 with the parser's text, or for a field that cannot be selected.
pub(crate) fn filter(
    resource: &Resource,
    namespace: &str,
    name: &str,
    opts: &ListOptions,
) -> Result<Filter, Status> {
    let mut out = Filter { key: resource.key_prefix(namespace), ..Filter::default() };
    if !name.is_empty() {
        out.key = resource.key(namespace, name);
        out.single = true;
    }
    if !opts.label_selector.is_empty() {
        let labels = LabelSelector::parse(&opts.label_selector).map_err(Status::bad_request)?;
        out.labels = (!labels.is_empty()).then_some(labels);
    }
    if !opts.field_selector.is_empty() {
        let mut fields = FieldSelector::parse(&opts.field_selector).map_err(Status::bad_request)?;
        for requirement in fields.requirements() {
            check_field(resource, &requirement.path)?;
        }
        if let Some(view) = resource.view() {
            fields.rename(|path| view.field_label(path));
        }
        // A list by exact name (and namespace) needs no scan.
        let is = |path: &str| {
            fields.requirements().iter().find(|r| r.path == path && r.equals).map(|r| r.value.clone())
        };
        if let Some(name) = is("metadata.name").filter(|n| !n.is_empty() && !n.contains('/'))
            && !out.single
        {
            let of = if namespace.is_empty() { is("metadata.namespace") } else { Some(namespace.to_owned()) };
            match of {
                Some(ns) if resource.namespaced() && !ns.is_empty() => {
                    (out.key, out.single) = (resource.key(&ns, &name), true);
                }
                _ if !resource.namespaced() => (out.key, out.single) = (resource.key("", &name), true),
                _ => {}
            }
        }
        out.fields = (!fields.requirements().is_empty()).then_some(fields);
    }
    Ok(out)
}

/// Takes the field selector out of a filter when it must look at objects after their conversion: versions of a
/// custom resource have fields of their own.
pub(crate) fn late(resource: &Resource, filter: &mut Filter) -> Option<Filter> {
    let own = |fields: &FieldSelector| {
        fields
            .requirements()
            .iter()
            .any(|r| !matches!(r.path.as_str(), "metadata.name" | "metadata.namespace"))
    };
    let taken =
        resource.custom().is_some() && resource.has_versions() && filter.fields.as_ref().is_some_and(own);
    taken.then(|| Filter { fields: filter.fields.take(), ..Filter::default() })
}

fn check_field(resource: &Resource, path: &str) -> Result<(), Status> {
    let nowhere =
        matches!(resource.def.kind, "Node" | "Namespace" | "CertificateSigningRequest" | "ResourceSlice");
    if path == "metadata.name" || (path == "metadata.namespace" && !nowhere) {
        return Ok(());
    }
    let known = if resource.view().is_some() { Vec::new() } else { resource.selectable() };
    if known.contains(&path) || resource.view().is_some_and(|view| view.field_label(path).is_some()) {
        return Ok(());
    }
    let message = match (resource.def.group, resource.def.kind) {
        _ if resource.custom().is_some() => format!("field label not supported: {path}"),
        ("", "Pod" | "Node" | "Event" | "Namespace" | "Secret" | "ReplicationController" | "Service") => {
            format!("field label not supported: {path}")
        }
        ("events.k8s.io", "Event") | ("certificates.k8s.io", "CertificateSigningRequest") => {
            format!("field label not supported: {path}")
        }
        (group @ "resource.k8s.io", kind) if !known.is_empty() => {
            format!("field label not supported for {group}/{}, Kind={kind}: {path}", resource.def.version)
        }
        _ if known.is_empty() => {
            format!("{path:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
        }
        (_, kind) => format!("field label {path:?} not supported for {kind}"),
    };
    Err(Status::bad_request(message))
}

/// Checks the options of list and watch requests as upstream's `ValidateListOptions`.
///
/// # Errors
/// 422 naming `ListOptions`.
pub(crate) fn check_list_options(
    opts: &ListOptions,
    watch: bool,
    send_initial_events: Option<bool>,
) -> Result<(), Status> {
    let mut errs = ErrorList::new();
    let matching = opts.resource_version_match.as_str();
    if watch {
        check_watch_options(matching, send_initial_events.is_some(), &mut errs);
        if !matching.is_empty() && !opts.continue_token.is_empty() {
            errs.forbidden(MATCH, "resourceVersionMatch is forbidden when continue is provided");
        }
    } else {
        check_match(matching, opts, &mut errs);
        if send_initial_events.is_some() {
            errs.forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list");
        }
    }
    if errs.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errs)) }
}

fn check_match(matching: &str, opts: &ListOptions, errs: &mut ErrorList) {
    if matching.is_empty() {
        return;
    }
    if !opts.continue_token.is_empty() {
        errs.forbidden(MATCH, "resourceVersionMatch is forbidden when continue is provided");
    }
    if opts.resource_version.is_empty() {
        errs.forbidden(MATCH, "resourceVersionMatch is forbidden unless resourceVersion is provided");
    }
    if !matches!(matching, "Exact" | "NotOlderThan") {
        errs.not_supported(MATCH, matching, &["Exact", "NotOlderThan", ""]);
    }
    if matching == "Exact" && opts.resource_version == "0" {
        errs.forbidden(MATCH, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
    }
}

/// Without bookmarks the end of the initial events cannot be told, but upstream allows it.
fn check_watch_options(matching: &str, send_initial_events: bool, errs: &mut ErrorList) {
    let known = matching == "NotOlderThan";
    if send_initial_events && !known {
        errs.forbidden(MATCH, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
    }
    if matching.is_empty() {
        return;
    }
    if !send_initial_events {
        let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
        errs.forbidden(MATCH, why);
    }
    if !known {
        errs.not_supported(MATCH, matching, &["NotOlderThan"]);
    }
}

fn encode_token(tail: &str, revision: u64) -> String {
    let token = json!({ "v": "meta.k8s.io/v1", "rv": revision, "start": format!("{tail}\0") });
    URL_SAFE_NO_PAD.encode(token.to_string())
}

fn decode_token(text: &str) -> Result<Token, Status> {
    let bad = |why: String| {
        Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
    };
    let bytes = LENIENT.decode(text.trim_end_matches('=')).map_err(|_| {
        // As Go tells it: the first character that is none of the alphabet, or the one that lacks others.
        let known = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let at = text.as_bytes().iter().position(|b| !known(b)).unwrap_or(text.len().saturating_sub(1));
        bad(format!("illegal base64 data at input byte {at}"))
    })?;
    let value: Value =
        serde_json::from_slice(&bytes).map_err(|e| bad(super::decode::syntax_error(&bytes, &e)))?;
    let version = value["v"].as_str().unwrap_or("");
    if version != "meta.k8s.io/v1" {
        let why = format!("server does not recognize this encoded version {version}");
        return Err(bad(why));
    }
    let revision = match &value["rv"] {
        Value::Number(n) if n.as_i64() == Some(-1) => 0,
        Value::Number(n) => n.as_u64().unwrap_or(0),
        _ => 0,
    };
    if revision == 0 && value["rv"].as_i64() != Some(-1) {
        return Err(bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)".into()));
    }
    let start = value["start"].as_str().unwrap_or("").to_owned();
    if start.is_empty() {
        let why = "encoded start key empty (version meta.k8s.io/v1)";
        return Err(bad(why.to_owned()));
    }
    Ok(Token { revision, start })
}

fn too_old_list() -> Status {
    Status::expired("The resourceVersion for the provided list is too old.")
}

fn inconsistent(token: &Token) -> Status {
    let next = json!({ "v": "meta.k8s.io/v1", "rv": -1, "start": token.start });
    let message = "The provided continue parameter is too old to display a consistent list result. You can \
                   start a new list without the continue parameter, or use the continue token in this response \
                   to retrieve the remainder of the results. Continuing with the provided token results in an \
                   inconsistent list - objects that were created, modified, or deleted between the time the \
                   first chunk was returned and now may show up in the list.";
    let details = json!({ "continue": URL_SAFE_NO_PAD.encode(next.to_string()) });
    Status::new(410, Reason::Expired, message, Some(details))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_tokens_are_refused_in_upstreams_words() {
        let told = |token: &str| {
            let status = decode_token(&URL_SAFE_NO_PAD.encode(token)).err().expect("refused");
            let text = status.message().to_owned();
            text.strip_prefix("invalid continue token: continue key is not valid: ")
                .map(str::to_owned)
                .expect("why")
        };
        assert_eq!(told(r#"{"v":"x"}"#), "server does not recognize this encoded version x");
        let version = "(version meta.k8s.io/v1)";
        let no_revision = format!("incorrect encoded start resourceVersion {version}");
        assert_eq!(told(r#"{"v":"meta.k8s.io/v1"}"#), no_revision);
        assert_eq!(told(r#"{"v":"meta.k8s.io/v1","rv":1}"#), format!("encoded start key empty {version}"));
    }

    #[test]
    fn a_watch_that_wants_a_match_has_nothing_to_continue() {
        let opts = ListOptions {
            resource_version_match: "NotOlderThan".into(),
            continue_token: "x".into(),
            ..ListOptions::default()
        };
        let status = check_list_options(&opts, true, Some(true)).expect_err("refused");
        assert!(status.message().contains("is forbidden when continue is provided"), "{}", status.message());
        let exact = ListOptions { resource_version_match: "Exact".into(), ..ListOptions::default() };
        let causes = |send| {
            let status = check_list_options(&exact, true, send).expect_err("refused");
            status.details().map_or(0, |d| d["causes"].as_array().map_or(0, Vec::len))
        };
        assert_eq!((causes(None), causes(Some(true))), (2, 2));
    }
}
