//! The in-process transport: the same authorization, admission and verbs as over HTTP, without codec.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_auth::{Attributes, Decision, UserInfo};
use coracle_client::{
    ApiRequest, ApiResponse, Body, ListOptions, ResourceId, Transport, Verb, WatchEvent, WatchStream,
};
use coracle_meta::Status;
use futures::StreamExt;
use http::Method;
use serde_json::Value;

use crate::cache::EventKind;
use crate::http::authz::name_in;
use crate::http::info::Info;
use crate::http::query::Query;
use crate::metrics_api;
use crate::registry::Resource;
use crate::server::Server;
use crate::verbs::delete::Deleted;
use crate::verbs::list::Page;
use crate::verbs::patch::Patch;
use crate::verbs::scale::ScaleWrite;
use crate::verbs::watch::{Next, WatchOptions, Watching};
use crate::verbs::{Caller, Input, Outcome, Part};
use crate::views::object;

/// Requests of one user.
pub(crate) struct InProcess {
    server: Arc<Server>,
    caller: Caller,
}

impl InProcess {
    pub(crate) fn new(server: Arc<Server>, user: UserInfo) -> Self {
        let agent = agent_of(&user.name).into();
        Self { server, caller: Caller::new(Arc::new(user), agent) }
    }

    fn resource(&self, id: ResourceId) -> Result<Arc<Resource>, Status> {
        let found = self.server.cache.registry.served(id.group, id.version, id.resource);
        let resource = found.ok_or_else(Status::no_such_path)?;
        resource.cache.keep_decoded();
        Ok(resource)
    }

    async fn authorize(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        subresource: &str,
        verb: &str,
        field_selector: &str,
    ) -> Result<(), Status> {
        if self.caller.user.in_group(coracle_auth::SYSTEM_MASTERS) {
            return Ok(());
        }
        let attributes = Attributes {
            user: (*self.caller.user).clone(),
            verb: verb.to_owned(),
            is_resource: true,
            group: resource.def.group.to_owned(),
            version: resource.def.version.to_owned(),
            resource: resource.def.plural.to_owned(),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            field_selector: field_selector.to_owned(),
            ..Attributes::default()
        };
        match self.server.decide(&attributes).await {
            (Decision::Allow, _) => Ok(()),
            (_, reason) => Err(attributes.forbidden(&reason)),
        }
    }

    async fn answer(&self, resource: &Resource, outcome: Outcome) -> Result<ApiResponse, Status> {
        // The cache's own entry has the decoded object already.
        if outcome.entry.revision > self.server.cache.applied() {
            self.server.cache.wait_for(outcome.entry.revision).await;
        }
        if !outcome.entry.is_decoded()
            && let Some(shared) = resource.cache.get(&outcome.entry.key)
            && shared.revision == outcome.entry.revision
            && std::ptr::eq(shared.def, outcome.entry.def)
        {
            return Ok(ApiResponse::Object(object(resource, &shared)?));
        }
        Ok(ApiResponse::Object(object(resource, &outcome.entry)?))
    }
}

/// The field manager of a component, as upstream's programs call themselves.
fn agent_of(user: &str) -> &'static str {
    match user {
        "system:kube-scheduler" => "kube-scheduler",
        "system:kube-proxy" => "kube-proxy",
        "system:apiserver" => "kube-apiserver",
        _ if user.starts_with("system:node:") => "kubelet",
        _ if user.starts_with("system:serviceaccount:kube-system:") => "kube-controller-manager",
        _ => "coracle",
    }
}

fn page_response(resource: &Resource, page: &Page) -> Result<ApiResponse, Status> {
    let items = page.entries.iter().map(|e| object(resource, e)).collect::<Result<_, _>>()?;
    let resource_version = page.revision.to_string();
    Ok(ApiResponse::List { items, resource_version, continue_token: page.continue_token.clone() })
}

fn input(body: Body) -> Input {
    match body {
        Body::Object(obj) => Input::Object(obj),
        Body::Json(value) => Input::Json(value),
    }
}

fn verb_name(verb: &Verb) -> &'static str {
    match verb {
        Verb::Get => "get",
        Verb::List(_) => "list",
        Verb::Create(..) => "create",
        Verb::Update(..) => "update",
        Verb::Patch(..) => "patch",
        Verb::Delete(_) => "delete",
        Verb::DeleteCollection(..) => "deletecollection",
    }
}

/// The part a subresource stands for, if it is one that update and patch know.
pub(crate) fn part_of(subresource: &str) -> Option<Part> {
    let parts = [
        Part::Main,
        Part::Status,
        Part::EphemeralContainers,
        Part::Resize,
        Part::Finalize,
        Part::Approval,
        Part::Scale,
    ];
    parts.into_iter().find(|p| p.path() == subresource)
}

#[async_trait]
impl Transport for InProcess {
    async fn request(&self, request: ApiRequest) -> Result<ApiResponse, Status> {
        let resource = self.resource(request.resource)?;
        let (ns, name, sub) = (request.namespace.as_str(), request.name.as_str(), request.subresource);
        let selector = match &request.verb {
            Verb::List(opts) | Verb::DeleteCollection(_, opts) => opts.field_selector.as_str(),
            _ => "",
        };
        let asked = if name.is_empty() { name_in(selector) } else { name };
        self.authorize(&resource, ns, asked, sub, verb_name(&request.verb), selector).await?;
        // Each request has warnings and notes of its own.
        let caller = &Caller::new(self.caller.user.clone(), self.caller.agent.clone());
        let server = &self.server;
        let part = part_of(sub);
        match request.verb {
            Verb::Get if sub == "scale" => {
                let scale = server.get_scale(&resource, ns, name).await?;
                Ok(ApiResponse::Object(scale.entry.decoded()?))
            }
            Verb::Get => {
                let entry = server.get(&resource, ns, name).await?;
                Ok(ApiResponse::Object(object(&resource, &entry)?))
            }
            Verb::List(opts) => page_response(&resource, &server.list(&resource, ns, "", &opts).await?),
            Verb::Create(body, opts) => {
                let body = input(body);
                match sub {
                    "" => {
                        let made = server.create(caller, &resource, ns, body, &opts).await?;
                        self.answer(&resource, made).await
                    }
                    "binding" => {
                        let bound = server.bind(caller, &resource, ns, name, body, &opts).await?;
                        Ok(ApiResponse::Status(bound))
                    }
                    "eviction" => {
                        let evicted = server.evict(caller, &resource, ns, name, body, &opts).await?;
                        Ok(ApiResponse::Status(evicted))
                    }
                    "token" => {
                        let outcome = server.issue_token(caller, &resource, ns, name, body, &opts).await?;
                        Ok(ApiResponse::Object(outcome.entry.decoded()?))
                    }
                    _ => Err(Status::no_such_path()),
                }
            }
            Verb::Update(Body::Json(value), opts) if sub == "scale" => {
                let write = ScaleWrite::Replace(value);
                let outcome = server.write_scale(caller, &resource, ns, name, write, &opts).await?;
                Ok(ApiResponse::Object(outcome.entry.decoded()?))
            }
            Verb::Update(body, opts) => {
                let part = part.ok_or_else(Status::no_such_path)?;
                let outcome = server.update(caller, &resource, ns, name, part, input(body), &opts).await?;
                self.answer(&resource, outcome).await
            }
            Verb::Patch(kind, body, opts) if sub == "scale" => {
                let write = ScaleWrite::Patch(kind, &body);
                let outcome = server.write_scale(caller, &resource, ns, name, write, &opts).await?;
                Ok(ApiResponse::Object(outcome.entry.decoded()?))
            }
            Verb::Patch(kind, body, opts) => {
                let part = part.ok_or_else(Status::no_such_path)?;
                let patch = Patch { kind, body: &body, twice: &[] };
                let outcome = server.patch(caller, &resource, ns, name, part, patch, &opts).await?;
                self.answer(&resource, outcome).await
            }
            Verb::Delete(opts) => match server.delete(caller, &resource, ns, name, &opts).await? {
                Deleted::Object(outcome) => Ok(ApiResponse::Object(object(&resource, &outcome.entry)?)),
                Deleted::Status(status) => Ok(ApiResponse::Status(status)),
            },
            Verb::DeleteCollection(opts, list) => {
                let page = server.delete_collection(caller, &resource, ns, &opts, &list).await?;
                page_response(&resource, &page)
            }
        }
    }

    async fn watch(
        &self,
        resource: ResourceId,
        namespace: &str,
        options: ListOptions,
        send_initial_events: bool,
    ) -> Result<WatchStream, Status> {
        let resource = self.resource(resource)?;
        let selector = options.field_selector.as_str();
        self.authorize(&resource, namespace, name_in(selector), "", "watch", selector).await?;
        let mut opts = options;
        if send_initial_events {
            opts.resource_version_match = "NotOlderThan".into();
        }
        let watch =
            WatchOptions { bookmarks: true, send_initial_events: send_initial_events.then_some(true) };
        let watching = self.server.watch(&resource, namespace, "", &opts, watch).await?;
        let state = Some((self.server.clone(), watching, resource));
        let stream = futures::stream::unfold(state, |state| async {
            let (server, mut watching, resource) = state?;
            let item = next_event(&server, &resource, &mut watching).await;
            let rest = item.is_ok().then_some((server, watching, resource));
            Some((item, rest))
        });
        Ok(stream.boxed())
    }

    async fn read(&self, path: &str, query: &str) -> Result<Value, Status> {
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        let query = Query::new(query);
        let info = Info::new(&Method::GET, path, &query);
        let selector = query.get("fieldSelector").unwrap_or("");
        let selectors = (selector, query.get("labelSelector").unwrap_or(""));
        crate::http::authz::check(&self.server, &self.caller.user, &info, path, selectors).await?;
        if let Some(extension) = self.server.aggregation.route(info.group, info.version) {
            return crate::aggregation::read(&self.server, &extension, &self.caller.user, target).await;
        }
        if info.is_resource && info.group == metrics_api::GROUP && metrics_api::is_served(&self.server) {
            return metrics_api::answer(&self.server, &Method::GET, &info, &query).await;
        }
        crate::http::docs::document(&self.server, path).ok_or_else(Status::no_such_path)
    }
}

async fn next_event(
    server: &Server,
    resource: &Resource,
    watching: &mut Watching,
) -> Result<WatchEvent, Status> {
    let next = loop {
        let next = watching.next().await;
        if let Some(next) = watching.matched(resource, next).await? {
            break next;
        }
    };
    match next {
        Next::Initial(entry) => {
            let entry = server.in_version(resource, entry).await?;
            Ok(WatchEvent::Added(object(resource, &entry)?))
        }
        Next::Event(kind, event) => {
            let entry = event.entry(kind).ok_or_else(|| Status::internal("event without object"))?;
            let entry = server.in_version(resource, entry.clone()).await?;
            let obj = object(resource, &entry)?;
            Ok(match kind {
                EventKind::Added => WatchEvent::Added(obj),
                EventKind::Modified => WatchEvent::Modified(obj),
                EventKind::Deleted => WatchEvent::Deleted(obj),
            })
        }
        Next::Bookmark(revision, initial_events_end) => {
            Ok(WatchEvent::Bookmark { resource_version: revision.to_string(), initial_events_end })
        }
        Next::End => Err(Status::expired("the watcher was too slow and has been cut off")),
    }
}
