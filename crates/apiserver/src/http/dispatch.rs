//! Resource requests: which verb of which resource, with which options.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use coracle_client::{DeleteOptions, PatchKind, WriteOptions};
use coracle_meta::{Reason, Status, go};
use coracle_resources::def::{Storage, Subresource};
use http::header::USER_AGENT;
use http::{HeaderMap, Method, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::Value;

use super::body::{self, Body};
use super::info::Info;
use super::negotiate::{self, Format};
use super::pipeline::Incomer;
use super::query::{Query, check_dry_run, check_one_policy};
use super::respond::{self, Answer, method_not_allowed};
use super::watch;
use super::web_socket;
use super::written::{json_patch_errors, patch_body, patch_kind, yaml_body};
use super::yaml::doubled_keys;
use crate::audit::Trail;
use crate::flow::Seat;
use crate::metrics_api;
use crate::protobuf;
use crate::registry::Resource;
use crate::server::Server;
use crate::transport::part_of;
use crate::verbs::binding::delete_options_of;
use crate::verbs::delete::Deleted;
use crate::verbs::list::check_list_options;
use crate::verbs::patch::Patch;
use crate::verbs::scale::ScaleWrite;
use crate::verbs::sent::SCALE;
use crate::verbs::watch::WatchOptions;
use crate::verbs::{Caller, Input, check_options, decode};

/// One resource request on its way to its verb.
struct Call<'a> {
    server: &'a Arc<Server>,
    resource: Arc<Resource>,
    info: &'a Info<'a>,
    query: &'a Query<'a>,
    headers: HeaderMap,
    method: Method,
    caller: Caller,
    /// What the audit log notes of the request.
    trail: Option<Arc<Trail>>,
    /// The seats of a watch, which it gives back when it has begun.
    seat: Option<Seat>,
}

/// Answers a resource request.
pub(crate) async fn resource(
    server: &Arc<Server>,
    incomer: Incomer,
    info: &Info<'_>,
    query: &Query<'_>,
) -> Response<Body> {
    if info.group.is_empty() && info.resource == "bindings" && info.namespaced_path && info.name.is_empty() {
        return bindings(server, incomer, info, query).await;
    }
    if info.group == metrics_api::GROUP && metrics_api::is_served(server) {
        return metrics_api::handle(server, incomer.request.method(), info, query).await;
    }
    let Some(resource) = find(server, info) else {
        let registry = &server.cache.registry;
        if !info.group.is_empty() && (!registry.has_group(info.group) || registry.is_custom_group(info.group))
        {
            return unserved(server, info);
        }
        return respond::status(&Status::no_such_path());
    };
    if is_streaming(info.subresource)
        && resource.def.subresources.iter().any(|s| s.path() == info.subresource)
    {
        return crate::kubelet::handle(server, &resource, incomer, info, query).await;
    }
    let mut request = incomer.request;
    let socket = match info.verb.as_str() {
        "watch" => web_socket::wish(&mut request),
        _ => Ok(None),
    };
    let (mut parts, incoming) = request.into_parts();
    let seat = parts.extensions.remove::<Seat>();
    let trail = parts.extensions.get::<Arc<Trail>>().cloned();
    let caller = Caller::new(incomer.user, agent(&parts.headers, &parts.method)).noting(trail.as_deref());
    let warned = caller.warned.clone();
    let socket = match socket {
        Ok(socket) => socket.map(|handshake| (handshake, parts.headers.clone())),
        Err(status) => return respond::status(&status),
    };
    let call = Call {
        server,
        resource: resource.clone(),
        info,
        query,
        headers: parts.headers,
        method: parts.method,
        caller,
        trail,
        seat,
    };
    let answer = if info.subresource.is_empty() {
        call.main(incoming).await
    } else {
        call.subresource(incoming).await
    };
    let mut response = answer.unwrap_or_else(|status| respond::status(&status));
    respond::warn(&mut response, &warned.lock());
    let deprecated = match resource.custom() {
        Some(custom) => custom.current().deprecation.clone(),
        None => deprecation(info).map(str::to_owned),
    };
    if let Some(text) = deprecated
        && response.status() != StatusCode::METHOD_NOT_ALLOWED
    {
        respond::warn(&mut response, &[text]);
    }
    match socket {
        Some((handshake, headers)) => handshake.watch(response, &headers),
        None => response,
    }
}

/// What a path below a group of custom resources is told that leads nowhere: a subresource that the resource
/// does not have is one of an object that is not found.
fn unserved(server: &Server, info: &Info<'_>) -> Response<Body> {
    let resource = server.cache.registry.served(info.group, info.version, info.resource);
    let placed = |r: &Arc<Resource>| r.namespaced() == info.namespaced_path;
    match resource.filter(|r| placed(r) && !info.subresource.is_empty() && !info.overlong) {
        Some(resource) => {
            let def = resource.def;
            respond::status(&Status::not_found(def.group, def.plural, info.name))
        }
        None => respond::not_found_page(),
    }
}

/// What users of an old resource are told.
fn deprecation(info: &Info<'_>) -> Option<&'static str> {
    match (info.group, info.resource) {
        ("", "endpoints") => {
            Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
        }
        ("", "componentstatuses") => Some("v1 ComponentStatus is deprecated in v1.19+"),
        _ => None,
    }
}

/// The old way to bind a pod: `POST …/bindings`.
async fn bindings(
    server: &Arc<Server>,
    incomer: Incomer,
    info: &Info<'_>,
    query: &Query<'_>,
) -> Response<Body> {
    let Some(pods) = server.cache.registry.find("", "pods") else {
        return respond::status(&Status::no_such_path());
    };
    if incomer.request.method() != Method::POST {
        return respond::status(&method_not_allowed());
    }
    let info = Info { resource: "pods", subresource: "binding", ..info.clone() };
    let (parts, incoming) = incomer.request.into_parts();
    let caller = Caller::new(incomer.user, agent(&parts.headers, &parts.method));
    let (headers, method) = (parts.headers, parts.method);
    let (trail, seat) = (None, None);
    let call = Call { server, resource: pods, info: &info, query, headers, method, caller, trail, seat };
    let warned = call.caller.warned.clone();
    let mut response = call.action(incoming).await.unwrap_or_else(|status| respond::status(&status));
    respond::warn(&mut response, &warned.lock());
    response
}

fn is_streaming(subresource: &str) -> bool {
    matches!(subresource, "log" | "exec" | "attach" | "portforward" | "proxy")
}

/// The resource a path names, if the path has a form that the resource has.
fn find(server: &Server, info: &Info<'_>) -> Option<Arc<Resource>> {
    let resource = server.cache.registry.served(info.group, info.version, info.resource)?;
    let fits = if info.resource == "namespaces" && info.group.is_empty() {
        !info.namespaced_path
    } else if resource.namespaced() {
        info.namespaced_path || info.name.is_empty()
    } else {
        !info.namespaced_path
    };
    let subresource =
        info.subresource.is_empty() || resource.def.subresources.iter().any(|s| s.path() == info.subresource);
    let virtual_ok = resource.stored() || resource.computed() || info.name.is_empty();
    let long_ok = !info.overlong || info.subresource == Subresource::Proxy.path();
    // Custom resources have no paths for all namespaces but to read.
    let custom_ok = resource.custom().is_none()
        || !resource.namespaced()
        || info.namespaced_path
        || matches!(info.verb.as_str(), "list" | "watch");
    (fits && subresource && virtual_ok && long_ok && custom_ok).then_some(resource)
}

/// The program's name in the User-Agent, for writes.
fn agent(headers: &HeaderMap, method: &Method) -> Arc<str> {
    if matches!(*method, Method::GET | Method::DELETE) {
        return Arc::from("");
    }
    let text = headers.get(USER_AGENT).map_or(&b""[..], |v| v.as_bytes());
    let text = String::from_utf8_lossy(text);
    let name = text.split('/').next().unwrap_or("");
    let mut end = name.len().min(128);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].into()
}

impl Call<'_> {
    fn answer(&self, list: bool) -> Result<Answer<'_>, Status> {
        let table = self.resource.def.storage != Storage::Virtual
            && !matches!(self.info.subresource, "binding" | "eviction" | "token");
        let able = negotiate::Able { list, protobuf: self.resource.protobuf, table };
        let mut wanted = negotiate::wanted(&self.headers, able)?;
        wanted.pretty |= self.pretty();
        Ok(Answer {
            server: self.server,
            wanted,
            include_object: self.query.get("includeObject").unwrap_or(""),
            gzip: respond::takes_gzip(&self.headers),
            trail: self.trail.as_deref(),
        })
    }

    /// `?pretty=`, which is on by default for browsers and curl.
    fn pretty(&self) -> bool {
        match self.query.get("pretty") {
            Some(value) => !matches!(value, "0" | "false"),
            None => {
                let agent = self.headers.get(USER_AGENT).map_or(&b""[..], |v| v.as_bytes());
                [&b"curl"[..], b"Wget", b"Mozilla/5.0"].iter().any(|p| agent.starts_with(p))
            }
        }
    }

    /// 405, which custom resources word by the verb.
    fn refused(&self) -> Status {
        match self.resource.custom() {
            Some(_) if self.info.name.is_empty() && matches!(self.info.verb.as_str(), "update" | "patch") => {
                Status::bad_request("name must be provided")
            }
            Some(_) => {
                let def = self.resource.def;
                Status::method_not_supported(def.group, def.plural, &self.info.verb)
            }
            None => method_not_allowed(),
        }
    }

    /// A definition that is being deleted takes nothing new.
    fn refuse_terminating(&self) -> Result<(), Status> {
        if !self.resource.custom().is_some_and(|c| c.current().terminating) {
            return Ok(());
        }
        let (def, verb) = (self.resource.def, &self.info.verb);
        let status = Status::method_not_supported(def.group, def.plural, verb);
        let message = format!("{verb} not allowed while custom resource definition is terminating");
        Err(Status::new(405, status.reason(), message, status.details().cloned()))
    }

    async fn main(self, body: Incoming) -> Result<Response<Body>, Status> {
        let info = self.info;
        if info.watch_path && self.method != Method::GET {
            return Err(method_not_allowed());
        }
        if self.resource.computed() {
            return self.computed().await;
        }
        if !self.resource.stored() && self.method != Method::POST {
            return Err(method_not_allowed());
        }
        let all_namespaces = self.resource.namespaced() && !info.namespaced_path;
        match (&self.method, info.name.is_empty()) {
            (&Method::GET, _) => self.read().await,
            (&Method::POST, true) if !all_namespaces => {
                self.refuse_terminating()?;
                self.create(body).await
            }
            (&Method::PUT, false) => self.update(body).await,
            (&Method::PATCH, false) => self.patch(body).await,
            (&Method::DELETE, false) => self.delete(body).await,
            (&Method::DELETE, true) if !all_namespaces && self.resource.def.kind != "Namespace" => {
                self.delete_collection(body).await
            }
            _ => Err(self.refused()),
        }
    }

    /// Reads of what the server makes up.
    async fn computed(self) -> Result<Response<Body>, Status> {
        if self.method != Method::GET || self.info.verb == "watch" {
            return Err(method_not_allowed());
        }
        if self.info.name.is_empty() {
            let page = self.server.list_components(&self.resource, &self.query.list_options()?).await?;
            return self.answer(true)?.list(&self.resource, page);
        }
        let outcome = self.server.get_component(&self.resource, self.info.name).await?;
        self.answer(false)?.object(&self.resource, &outcome)
    }

    fn namespace(&self) -> &str {
        if self.resource.namespaced() { self.info.namespace } else { "" }
    }

    async fn read(self) -> Result<Response<Body>, Status> {
        match self.info.verb.as_str() {
            "watch" => self.watch().await,
            "list" => self.list().await,
            _ => self.get().await,
        }
    }

    async fn get(self) -> Result<Response<Body>, Status> {
        let answer = self.answer(false)?;
        if self.query.get("export").is_some() {
            let why = "the export parameter, deprecated since v1.14, is no longer supported";
            return Err(Status::bad_request(why));
        }
        if let Some(text) = self.query.get("resourceVersion").filter(|t| !t.is_empty()) {
            let parsed = crate::verbs::read::parse_revision(text);
            let revision = parsed.map_err(|e| Status::new(500, Reason::Unknown, e, None))?;
            self.server.reach(revision.unwrap_or(0)).await?;
        }
        let entry = self.server.get(&self.resource, self.namespace(), self.info.name).await?;
        answer.object(&self.resource, &crate::verbs::Outcome::of(entry))
    }

    async fn list(self) -> Result<Response<Body>, Status> {
        let answer = self.answer(true)?;
        let opts = self.query.list_options()?;
        check_list_options(&opts, false, self.query.send_initial_events())?;
        let page = self.server.list(&self.resource, self.namespace(), "", &opts).await?;
        answer.list(&self.resource, page)
    }

    async fn watch(self) -> Result<Response<Body>, Status> {
        let answer = self.answer(true)?;
        if answer.wanted.format == Format::Yaml {
            return Err(negotiate::no_stream());
        }
        super::table::check_include(answer.include_object)?;
        let opts = self.query.list_options()?;
        let timeout = self.query.timeout_seconds()?;
        let watch = WatchOptions {
            bookmarks: self.query.flag("allowWatchBookmarks"),
            send_initial_events: self.query.send_initial_events(),
        };
        let name = self.info.name;
        let watching = self.server.watch(&self.resource, self.namespace(), name, &opts, watch).await?;
        let include = answer.include_object.to_owned();
        let begin = watch::Begin { watching, seat: self.seat.clone() };
        Ok(watch::response(self.server, &self.resource, begin, answer.wanted, include, timeout))
    }

    /// Options of a write with a body: what is wrong with them is told before the body is read.
    fn options(&self, kind: &str) -> Result<WriteOptions, Status> {
        let opts = self.query.write_options(kind)?;
        check_options(kind, &opts)?;
        Ok(opts)
    }

    async fn create(self, incoming: Incoming) -> Result<Response<Body>, Status> {
        let answer = self.answer(false)?;
        let opts = self.options("CreateOptions")?;
        let input = self.input(incoming, self.resource.def.kind).await?;
        let namespace = self.namespace();
        let outcome = self.server.create(&self.caller, &self.resource, namespace, input, &opts).await?;
        answer.object(&self.resource, &outcome)
    }

    async fn update(self, incoming: Incoming) -> Result<Response<Body>, Status> {
        let answer = self.answer(false)?;
        let opts = self.options("UpdateOptions")?;
        let input = self.input(incoming, self.resource.def.kind).await?;
        let part = part_of(self.info.subresource).ok_or_else(Status::no_such_path)?;
        let (namespace, name) = (self.namespace(), self.info.name);
        let outcome =
            self.server.update(&self.caller, &self.resource, namespace, name, part, input, &opts).await?;
        answer.object(&self.resource, &outcome)
    }

    async fn patch(self, incoming: Incoming) -> Result<Response<Body>, Status> {
        let answer = self.answer(false)?;
        let kind = self.patch_kind()?;
        let mut opts = self.query.write_options("PatchOptions")?;
        // Other patches do not know the word at all.
        opts.force |= kind != PatchKind::Apply && self.query.get("force").is_some();
        let (text, body) = self.patch_input(incoming, kind).await?;
        let twice = match kind {
            _ if opts.field_validation == "Ignore" => Vec::new(),
            PatchKind::Json => json_patch_errors(&text, &body),
            PatchKind::Apply => doubled_keys(&text).into_iter().collect(),
            PatchKind::Merge | PatchKind::Strategic => coracle_meta::schema::duplicate_fields(&text),
        };
        let part = part_of(self.info.subresource).ok_or_else(Status::no_such_path)?;
        let (namespace, name) = (self.namespace(), self.info.name);
        let patch = Patch { kind, body: &body, twice: &twice };
        let outcome =
            self.server.patch(&self.caller, &self.resource, namespace, name, part, patch, &opts).await?;
        answer.object(&self.resource, &outcome)
    }

    fn patch_kind(&self) -> Result<PatchKind, Status> {
        match (patch_kind(&self.headers), self.resource.custom()) {
            (kind, None) => kind,
            (Ok(kind), _) if kind != PatchKind::Strategic => Ok(kind),
            _ => Err(Status::unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
            )),
        }
    }

    async fn delete(self, incoming: Incoming) -> Result<Response<Body>, Status> {
        let answer = self.answer(false)?;
        let (opts, _) = self.delete_options(incoming).await?;
        let (namespace, name) = (self.namespace(), self.info.name);
        match self.server.delete(&self.caller, &self.resource, namespace, name, &opts).await? {
            Deleted::Object(outcome) => answer.object(&self.resource, &outcome),
            Deleted::Status(status) => answer.value(StatusCode::OK, &status),
        }
    }

    async fn delete_collection(self, incoming: Incoming) -> Result<Response<Body>, Status> {
        let answer = self.answer(true)?;
        let (opts, _) = self.delete_options(incoming).await?;
        let list = self.query.list_options()?;
        let namespace = self.namespace();
        let page =
            self.server.delete_collection(&self.caller, &self.resource, namespace, &opts, &list).await?;
        answer.list(&self.resource, page)
    }

    /// Options of a deletion: the body, or without one the query.
    async fn delete_options(&self, incoming: Incoming) -> Result<(DeleteOptions, bool), Status> {
        let text = body::read(incoming).await?;
        if text.is_empty() {
            return Ok((self.query.delete_options()?, false));
        }
        let value: Value = match negotiate::body_format(&self.headers)? {
            Format::Json => serde_json::from_slice(&text).map_err(|e| {
                let why = decode::syntax_error(&text, &e);
                Status::bad_request(format!("couldn't get version/kind; json parse error: {why}"))
            })?,
            Format::Yaml => yaml_body(&text, "DeleteOptions")?,
            Format::Protobuf => self.protobuf(&text, "DeleteOptions")?,
        };
        if let Some(why) = decode::head_fault(&value) {
            return Err(Status::bad_request(format!("couldn't get version/kind; json parse error: {why}")));
        }
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or("DeleteOptions");
        if kind != "DeleteOptions" {
            let version = value.get("apiVersion").and_then(Value::as_str).unwrap_or("");
            return Err(Status::bad_request(format!(
                "no kind {kind:?} is registered for version {version:?} in scheme \
                 \"k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27\""
            )));
        }
        if let Some(why) = go::type_error("meta/v1.DeleteOptions", value.to_string().as_bytes()) {
            return Err(Status::bad_request(why));
        }
        let dry: Vec<&str> =
            value["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        check_dry_run("DeleteOptions", &dry)?;
        check_one_policy(value["propagationPolicy"].as_str(), value["orphanDependents"].is_boolean())?;
        Ok((delete_options_of(&value), true))
    }

    async fn subresource(self, incoming: Incoming) -> Result<Response<Body>, Status> {
        match (self.info.subresource, &self.method) {
            ("scale", &Method::GET) => {
                let answer = self.answer(false)?;
                let (namespace, name) = (self.namespace(), self.info.name);
                let outcome = self.server.get_scale(&self.resource, namespace, name).await?;
                answer.object(&self.resource, &outcome)
            }
            ("scale", &Method::PUT | &Method::PATCH) => self.write_scale(incoming).await,
            ("binding" | "eviction" | "token", &Method::POST) => self.action(incoming).await,
            ("binding" | "eviction" | "token" | "scale", _) => Err(method_not_allowed()),
            ("finalize", &Method::PUT) => self.update(incoming).await,
            ("finalize", _) => Err(method_not_allowed()),
            (_, &Method::GET) => self.get().await,
            (_, &Method::PUT) => self.update(incoming).await,
            (_, &Method::PATCH) => self.patch(incoming).await,
            _ => Err(self.refused()),
        }
    }

    async fn write_scale(self, incoming: Incoming) -> Result<Response<Body>, Status> {
        let answer = self.answer(false)?;
        let (namespace, name) = (self.namespace(), self.info.name);
        let outcome = if self.method == Method::PUT {
            let opts = self.options("UpdateOptions")?;
            let input = self.input(incoming, "Scale").await?;
            let scale = self.server.sent(&self.caller, &SCALE, input, &opts.field_validation)?;
            let write = ScaleWrite::Replace(scale);
            self.server.write_scale(&self.caller, &self.resource, namespace, name, write, &opts).await?
        } else {
            let kind = self.patch_kind()?;
            let opts = self.query.write_options("PatchOptions")?;
            let (_, body) = self.patch_input(incoming, kind).await?;
            let write = ScaleWrite::Patch(kind, &body);
            self.server.write_scale(&self.caller, &self.resource, namespace, name, write, &opts).await?
        };
        answer.object(&self.resource, &outcome)
    }

    /// POST of binding, eviction and token.
    async fn action(self, incoming: Incoming) -> Result<Response<Body>, Status> {
        let answer = self.answer(false)?;
        let opts = self.options("CreateOptions")?;
        let kind = match self.info.subresource {
            "binding" => "Binding",
            "eviction" => "Eviction",
            _ => "TokenRequest",
        };
        let input = self.input(incoming, kind).await?;
        let (server, caller, resource) = (self.server, &self.caller, &self.resource);
        let (namespace, name) = (self.namespace(), self.info.name);
        let status = match kind {
            "Binding" => server.bind(caller, resource, namespace, name, input, &opts).await?,
            "Eviction" => server.evict(caller, resource, namespace, name, input, &opts).await?,
            _ => {
                let outcome = server.issue_token(caller, resource, namespace, name, input, &opts).await?;
                return answer.object(resource, &outcome);
            }
        };
        answer.value(StatusCode::CREATED, &status)
    }

    /// Notes the body where the audit log wants it.
    fn note<'v>(&self, body: impl FnOnce() -> Option<Cow<'v, Value>>) {
        if let Some(trail) = self.trail.as_ref().filter(|trail| trail.wants_request())
            && let Some(body) = body()
        {
            trail.request(body.into_owned());
        }
    }

    /// The patch of a request: its text, and what it means.
    async fn patch_input(&self, incoming: Incoming, kind: PatchKind) -> Result<(Bytes, Value), Status> {
        let text = body::read(incoming).await?;
        let body = patch_body(kind, &text)?;
        self.note(|| Some(Cow::Borrowed(&body)));
        Ok((text, body))
    }

    /// The body of a write.
    async fn input(&self, incoming: Incoming, kind: &str) -> Result<Input, Status> {
        let format = negotiate::body_format(&self.headers)?;
        let text: Bytes = body::read(incoming).await?;
        match format {
            Format::Json => {
                self.note(|| serde_json::from_slice(&text).ok().map(Cow::Owned));
                Ok(Input::Text(text))
            }
            Format::Yaml => {
                let value = yaml_body(&text, kind)?;
                self.note(|| Some(Cow::Borrowed(&value)));
                if self.resource.def.kind == kind {
                    decode::check_custom(&self.resource, &value, &text)?;
                }
                Ok(Input::Yaml(value, doubled_keys(&text)))
            }
            Format::Protobuf => {
                let value = self.protobuf(&text, kind)?;
                self.note(|| Some(Cow::Borrowed(&value)));
                Ok(Input::Json(value))
            }
        }
    }

    fn protobuf(&self, text: &[u8], kind: &str) -> Result<Value, Status> {
        protobuf::decode(text, self.resource.def, kind).map_err(|e| {
            let shown = decode::excerpt(text);
            Status::bad_request(format!(
                "the object provided is unrecognized (must be of type {kind}): {e} ({shown})"
            ))
        })
    }
}
